"""Every field of every kind survives a trip through its class; damaged documents only ever raise SpecInvalid."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api import SpecInvalid, decode
from tessera_core.api.kinds import KINDS
from tessera_core.api.records import ListOf, Record, record

DOCUMENTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in Path(__file__).parent.glob("documents/*.yaml")
}


def test_every_kind_has_a_document() -> None:
    assert {document["kind"] for document in DOCUMENTS.values()} == set(KINDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_in_canonical_form_is_written_as_it_was_read(name: str) -> None:
    document = copy.deepcopy(DOCUMENTS[name])
    decoded = decode(document)
    written = decoded.to_dict()

    metadata = {"namespace": "default"} if name.startswith(("modelservice", "modelprofile")) else {}
    expected = document | {"metadata": metadata | document["metadata"]}
    assert written == expected
    assert type(decoded).from_dict(written) == decoded
    assert hash(type(decoded).from_dict(json.loads(json.dumps(written)))) == hash(decoded)
    assert document == DOCUMENTS[name], "decoding must not change its input"


def test_the_documents_together_use_every_declared_field() -> None:
    declared: set[str] = set()
    used: set[str] = set()
    for document in DOCUMENTS.values():
        _collect(record(KINDS[document["kind"]]), document, declared, used)
    assert declared - used == set()


def _collect(codec: object, value: Any, declared: set[str], used: set[str]) -> None:
    if isinstance(codec, ListOf):
        for item in value:
            _collect(codec.item, item, declared, used)
    if isinstance(codec, Record):
        for field in codec.fields:
            name = f"{codec.cls.__name__}.{field.name}"
            declared.add(name)
            if field.name in value:
                used.add(name)
                _collect(field.codec, value[field.name], declared, used)


Step = str | int
Place = tuple[Step, ...]


def _places(value: Any, at: Place = ()) -> list[Place]:
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(place for key, item in children for place in _places(item, (*at, key)))]


PLACES = [(name, place) for name, document in DOCUMENTS.items() for place in _places(document)]

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["50ms", "0.5", "1e400", "0s", "None", "16Gi", "é", "\x00", "a.b", 10**400])
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=3), st.booleans())
def test_a_damaged_document_is_refused_with_paths_or_round_trips(
    damage: list[tuple[tuple[str, Place], Any]], strict: bool
) -> None:
    name = damage[0][0][0]
    document: Any = copy.deepcopy(DOCUMENTS[name])
    for (of, place), junk in damage:
        if of == name:
            document = _replaced(document, place, junk)
    _assert_refused_or_round_trips(document, strict=strict)


def _assert_refused_or_round_trips(document: object, *, strict: bool) -> None:
    try:
        decoded = decode(document, strict=strict)
    except SpecInvalid as invalid:
        refusal = invalid
    else:
        assert type(decoded).from_dict(decoded.to_dict()) == decoded
        return
    assert refusal.errors
    assert all(error.found and error.allowed for error in refusal.errors)
    assert len(str(refusal)) < 50_000


def _replaced(document: Any, place: Place, junk: Any) -> Any:
    if not place:
        return junk
    parent = document
    try:
        for step in place[:-1]:
            parent = parent[step]
        parent[place[-1]] = copy.deepcopy(junk)
    except (TypeError, KeyError, IndexError):
        pass  # an earlier damage took the parent away
    return document


@given(st.data())
def test_leaving_out_any_field_either_takes_its_default_or_names_it(data: st.DataObject) -> None:
    name, place = data.draw(
        st.sampled_from([p for p in PLACES if p[1] and isinstance(p[1][-1], str)])
    )
    document = copy.deepcopy(DOCUMENTS[name])
    parent: Any = document
    for step in place[:-1]:
        parent = parent[step]
    del parent[place[-1]]
    _assert_refused_or_round_trips(document, strict=True)
