"""The API server and the Python classes judge alike: every field of every sample, damaged in many ways.

What the schema lets in and the class refuses would reach the operator as an object it cannot read; what the
class lets in and the schema refuses would be served from a file and not from a cluster.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.api import Api
from e2e.native.control_plane import Access

from tessera_core.api import SpecInvalid, decode

SAMPLES = sorted((Path(__file__).parents[1] / "crds" / "samples").glob("*.yaml"))
PROBES: tuple[object, ...] = (
    *("", " ", "0", "-1", "1", "0.5", "101", "1e-9", "1e99", "x", "X", "a.b", "-a", "none", "None"),
    *("0s", "1ns", "1us", "5m", "1.5h", "9000h", "5 m", "16Gi", "0.5Gi", "1Xi", "Fixed", "Mean"),
    *("cpu-4", "cpu-4@2", "full", "1g.10gb", "1g.10gb@3", "sha256:00", "file:///a", "s3://u@h/a"),
    *("a" * 64, "a" * 400, "0 2 * * 6", "0 2 * *", "NVIDIA-L4"),
    *(-2, -1, 0, 1, 2, 17, 4097, 65537, 2**31, 2**62, 1.5, True, None),
    *([], {}, [1], ["a"], {"a": "b"}),
)
ABSENT = object()
CONNECTIONS = 4
"""The server judges twenty thousand documents: one after the other it would mostly wait."""
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where the parts of a document are."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))


def damaged(document: dict[str, Any], place: Place, probe: object) -> dict[str, Any]:
    """``document`` with ``probe`` at ``place``, or without what is there."""
    changed = copy.deepcopy(document)
    inner: Any = changed
    for step in place[:-1]:
        inner = inner[step]
    if probe is ABSENT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = probe
    return changed


def refused_by_class(document: dict[str, Any]) -> str | None:
    try:
        decode(document)
    except SpecInvalid as invalid:
        return str(invalid)
    return None


def differs_on_purpose(place: Place, probe: object) -> object:
    """Files are for local mode; which steps come earlier costs the server too much; it drops nulls in maps;
    the spec that a node is given was admitted as a ModelService's.
    """
    return (
        (place[1:2] in (("services",), ("candidates",)) and place[3:4] == ("spec",))
        or (place[-1] == "uri" and probe == "file:///a")
        or ("steps" in place and (len(place) == 3 or {"id", "requires"}.intersection(place)))
        or (probe is None and {"matchLabels", "resources", "selector"}.intersection(place[:-1]))
    )


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_both_judge_a_damaged_sample_alike(api: Api, path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    damages = [
        (place, probe)
        for place in places(document["spec"], ("spec",))
        for probe in (*PROBES, ABSENT)
        if not differs_on_purpose(place, probe)
    ]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        judging = [
            pool.submit(differences, api.access, document, damages[first::CONNECTIONS])
            for first in range(CONNECTIONS)
        ]
        found = [each for part in judging for each in part.result()]
    assert not found, "\n".join(sorted(found))


def differences(
    access: Access, document: dict[str, Any], damages: Sequence[tuple[Place, object]]
) -> list[str]:
    """What the server, asked over a connection of its own, and the class do not judge alike."""
    found = []
    with closing(Api(access)) as api:
        for place, probe in damages:
            variant = damaged(document, place, probe)
            server, own = api.admits(variant), refused_by_class(variant)
            if (server is None) != (own is None):
                what = "absent" if probe is ABSENT else repr(probe)
                found.append(f"{'.'.join(map(str, place))}={what}: {server or own}")
    return found
