"""From a document of any kind to its class."""

from __future__ import annotations

from collections.abc import Mapping

from tessera_core.api.errors import Report, SpecInvalid
from tessera_core.api.modelprofile import ModelProfile
from tessera_core.api.modelservice import ModelService
from tessera_core.api.placementplan import PlacementPlan
from tessera_core.api.runtimenode import RuntimeNode
from tessera_core.api.runtimepool import RuntimePool
from tessera_core.api.scalars import suggestion

Kind = ModelService | ModelProfile | RuntimePool | RuntimeNode | PlacementPlan

KINDS: dict[str, type[Kind]] = {
    cls.KIND: cls for cls in (ModelService, ModelProfile, RuntimePool, RuntimeNode, PlacementPlan)
}


def decode(document: object, *, strict: bool = True) -> Kind:
    """The object that a document describes, by its ``kind``.

    ``strict`` as in ``Resource.from_dict``. Raises SpecInvalid with every error of the document.
    """
    report = Report()
    if not isinstance(document, Mapping):
        report.refuse("", document, "a mapping with apiVersion, kind, metadata and spec")
        raise SpecInvalid(report.errors)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = suggestion(kind, list(KINDS)) if isinstance(kind, str) else ""
        report.refuse("kind", kind, ", ".join(KINDS) + hint)
        raise SpecInvalid(report.errors)
    return KINDS[kind].from_dict(document, strict=strict)
