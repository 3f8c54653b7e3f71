"""Options that one command passes on to the next: what is said again means what was said."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tessera_runtime.server_options import ADDRESSES, CONFINEMENT, TLS_FILES, add, again

TIMES = ("hang-timeout", "drain-timeout", "shutdown-delay")


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add(parser, *ADDRESSES, *CONFINEMENT, *TLS_FILES, *TIMES, "log-level")
    return parser


@pytest.mark.parametrize(
    "said",
    [
        [],
        ["--host=::1", "--http=0", "--grpc=0", "--metrics=0", "--log-level=debug"],
        ["--readable=/a b", "--readable=/c", "--workers-unconfined"],
        ["--tls-cert=/tls.crt", "--tls-key=/tls.key", "--tls-client-ca=/ca.crt"],
        ["--hang-timeout=0.5", "--drain-timeout=0", "--shutdown-delay=8"],
    ],
)
def test_what_is_said_again_means_the_same(
    parser: argparse.ArgumentParser, said: list[str]
) -> None:
    first = parser.parse_args(said)
    assert parser.parse_args(again(first)) == first
    assert bool(said) == (first != parser.parse_args([]))


def test_paths_mean_the_same_in_another_directory(
    parser: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = parser.parse_args(["--tls-key=key", "--readable=weights"])
    here = Path.cwd()
    words = again(first)
    monkeypatch.chdir(tmp_path)
    second = parser.parse_args(words)
    assert (second.tls_key, second.readable) == (here / "key", [here / "weights"])


def test_commands_pass_on_only_what_they_take() -> None:
    assert again(argparse.Namespace(host="::", file="services.yaml")) == ["--host=::"]
