"""The handwritten CRDs and the dataclasses say the same: fields, obligations, choices, sizes and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera_core.api.errors import Report
from tessera_core.api.kinds import KINDS
from tessera_core.api.records import Field, ListOf, MapOf, Record, record
from tessera_core.api.scalars import Choice

SCHEMAS: dict[str, Any] = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path in sorted((Path(__file__).parents[2] / "crds").glob("*.yaml"))
    for crd in [yaml.safe_load(path.read_text())]
}
COMPLETED = {"ModelService.spec.ensemble", "ModelService.spec.ensemble.combine"} | {
    "ModelService.spec.ensemble.minMembers"
}
"""Fields that a document may leave out although the class needs them: they follow from the members."""


def test_every_kind_has_a_crd() -> None:
    assert set(SCHEMAS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_schema_and_the_class_have_the_same_fields(kind: str) -> None:
    codec = record(KINDS[kind])
    parts = [field for field in codec.fields if field.name in ("spec", "status")]
    differences = [
        line
        for field in parts
        for line in compared(
            field.codec, SCHEMAS[kind]["properties"][field.name], f"{kind}.{field.name}"
        )
    ]
    assert differences == []


def compared(codec: object, schema: dict[str, Any], path: str) -> Iterator[str]:
    if isinstance(codec, Record):
        yield from compared_record(codec, schema, path)
    elif isinstance(codec, ListOf):
        if schema.get("type") != "array":
            yield f"{path}: a list in the class"
            return
        if (schema.get("minItems", 0), schema["maxItems"]) != (codec.least, codec.most):
            yield f"{path}: {codec.least} to {codec.most} items in the class"
        keys = schema.get("x-kubernetes-list-map-keys", [None])
        if path != "PlacementPlan.spec.steps" and keys != [codec.key]:
            yield f"{path}: key {codec.key} in the class"
        yield from compared(codec.item, schema["items"], f"{path}[]")
    elif isinstance(codec, MapOf):
        sizes = schema.get("minProperties", 0), schema.get("maxProperties")
        if sizes != (codec.least, codec.most):
            yield f"{path}: {codec.least} to {codec.most} keys in the class"
        yield from compared(codec.value, schema["additionalProperties"], f"{path}{{}}")
    elif isinstance(codec, Choice):
        if schema.get("enum") != codec.values:
            yield f"{path}: {codec.values} in the class"
    elif "properties" in schema or "items" in schema:
        yield f"{path}: one value in the class"
    elif schema.get("type") == "string" and "maxLength" not in schema and "enum" not in schema:
        yield f"{path}: unbounded"


def compared_record(codec: Record, schema: dict[str, Any], path: str) -> Iterator[str]:
    if path in (
        "RuntimeNode.spec.services[].spec",
        "RuntimeNode.spec.candidates[].spec",
    ):  # admitted as the spec of a ModelService before
        assert schema["x-kubernetes-preserve-unknown-fields"]
        return
    properties = schema.get("properties", {})
    names = [field.name for field in codec.fields]
    if set(names) != set(properties):
        yield f"{path}: only one side has {sorted(set(names) ^ set(properties))}"
        return
    for field in codec.fields:
        where = f"{path}.{field.name}"
        inner = properties[field.name]
        needed = field.name in schema.get("required", ())
        if field.required != needed and where not in COMPLETED:
            yield f"{where}: required is {field.required} in the class"
        yield from compared_default(field, inner, where)
        yield from compared(field.codec, inner, where)


def compared_default(field: Field, schema: dict[str, Any], path: str) -> Iterator[str]:
    if "default" not in schema:
        return
    report = Report(strict=True)
    decoded = field.codec.decode(schema["default"], path, report)
    if report.errors or decoded != field.default:
        yield f"{path}: the default is {field.default!r} in the class, {decoded!r} in the schema"
