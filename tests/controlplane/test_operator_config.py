"""Settings of the operator: all have defaults, and what is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.objects import service
from tessera_core.api import SpecInvalid
from tessera_operator.config import Config, read_config, refused_sources

Reader = Callable[[str], Config]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def reader(text: str) -> Config:
        path = tmp_path / "operator.yaml"
        path.write_text(text)
        return read_config(path)

    return reader


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "null"])
def test_everything_has_a_default(read: Reader, text: str) -> None:
    assert read(text) == Config() == read_config(None)


def test_settings_are_read_by_the_names_of_the_chart(read: Reader) -> None:
    found = read(
        """
        debounce: 250ms
        mostDebounce: 3s
        headroom: "1.5"
        overhead: 2ms
        reservedCores: 1
        cpuSlices: [1, 4]
        lostAfter: 1m
        heartbeatPoll: 5s
        driftAfter: 5m
        tuningTasks: 2
        modelPrefixes:
          default: ["hf://"]
          vision: ["s3://models/vision/", "https://"]
        """
    )
    assert found == Config(
        0.25,
        3.0,
        1.5,
        2.0,
        1,
        (1, 4),
        60.0,
        5.0,
        300.0,
        2,
        (("default", ("hf://",)), ("vision", ("s3://models/vision/", "https://"))),
    )
    assert (found.policy.headroom, found.policy.overhead_ms, found.policy.reserved_cores) == (
        1.5,
        2,
        1,
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("debounce: 0s", "debounce"),
        ("debounce: fast", "debounce"),
        ('headroom: "0.5"', "headroom"),
        ("cpuSlices: []", "cpuSlices"),
        ("cpuSlices: [0]", "cpuSlices[0]"),
        ("reservedCores: -1", "reservedCores"),
        ("lostafter: 1m", "lostafter"),
        ("driftAfter: 0s", "driftAfter"),
        ("driftAfter: 2h", "driftAfter"),
        ("modelPrefixes: {vision: hf://}", "modelPrefixes"),
        ("[1, 2]", ""),
    ],
)
def test_what_is_wrong_is_named(read: Reader, text: str, path: str) -> None:
    with pytest.raises(SpecInvalid) as raised:
        read(text)
    (error,) = raised.value.errors
    assert error.path.startswith(path)


def test_what_is_no_yaml_is_said_to_be_none(read: Reader) -> None:
    with pytest.raises(ValueError, match=r"operator\.yaml: no YAML"):
        read("a: [")


PREFIXES = (
    ("default", ("hf://", "https://models.example/")),
    ("vision", ("s3://models/",)),
    ("sealed", ()),
)


@pytest.mark.parametrize(
    ("namespace", "allowed"),
    [("vision", True), ("other", False), ("sealed", False)],
)
def test_models_come_from_where_their_namespace_may_fetch_them(
    namespace: str, allowed: bool
) -> None:
    spec = service("s", ("a", "b"), namespace=namespace).spec  # from s3://models/
    found = refused_sources(spec, namespace, Config(model_prefixes=PREFIXES))
    paths = [] if allowed else ["spec.members[0].model.uri", "spec.members[1].model.uri"]
    assert [error.path for error in found] == paths


def test_without_prefixes_models_may_come_from_anywhere() -> None:
    assert refused_sources(service("s").spec, "vision", Config()) == ()


def test_a_refused_source_says_what_is_allowed() -> None:
    config = Config(model_prefixes=PREFIXES)
    (error,) = refused_sources(service("s").spec, "other", config)
    assert "hf:// or https://models.example/" in error.allowed
    (error,) = refused_sources(service("s").spec, "sealed", config)
    assert "sealed" in error.allowed


def test_a_prefix_is_no_pattern() -> None:
    config = Config(model_prefixes=(("vision", ("s3://.*/",)),))
    assert len(refused_sources(service("s").spec, "vision", config)) == 1
