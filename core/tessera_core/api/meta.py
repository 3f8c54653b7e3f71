"""What every kind has: the head of the document, object metadata and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from tessera_core.api.errors import Report, SpecInvalid
from tessera_core.api.records import ListOf, MapOf, record
from tessera_core.api.scalars import integer, matching, text

API_VERSION = "tessera.dev/v1alpha1"

_LABEL_1123 = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"

LABEL = matching(
    _LABEL_1123,
    "an RFC 1123 label: a-z, 0-9 and '-', at most 63 characters, such as \"vision\"",
    63,
)
SERVICE_LABEL = matching(
    r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?",
    "an RFC 1035 label: a-z, 0-9 and '-', a letter first, no dots, at most 63 characters",
    63,
)
SUBDOMAIN = matching(
    rf"{_LABEL_1123}(?:\.{_LABEL_1123})*", "an RFC 1123 subdomain: labels joined by dots", 253
)
LABEL_KEY = matching(
    r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
    'a label key such as "app.kubernetes.io/name"',
    317,
)
_LABEL_VALUE = matching(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?",
    "a label value: at most 63 letters, digits, '-', '_' and '.'",
    63,
)
LABELS = MapOf(LABEL_KEY, _LABEL_VALUE)
_ANNOTATIONS = MapOf(LABEL_KEY, text(262144), most=256)
TIMESTAMP = matching(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z",
    'an RFC 3339 time in UTC such as "2026-01-31T12:00:00Z"',
    64,
)
GENERATION = integer(0, 2**63 - 1)

Pairs = tuple[tuple[str, str], ...]
"""A string mapping as pairs sorted by key."""


@dataclass(frozen=True, slots=True)
class ClusterMeta:
    """The metadata of a cluster-scoped object, less what only the API server uses."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "deletionGracePeriodSeconds",
            "generateName",
            "managedFields",
            "ownerReferences",
            "selfLink",
        }
    )

    name: Annotated[str, SUBDOMAIN]
    labels: Annotated[Pairs, LABELS] = ()
    annotations: Annotated[Pairs, _ANNOTATIONS] = ()
    finalizers: tuple[str, ...] = ()
    uid: str | None = None
    generation: Annotated[int | None, GENERATION] = None
    """Counts the changes of the spec; conditions name the one they were made from."""
    resource_version: str | None = None
    creation_timestamp: Annotated[str | None, TIMESTAMP] = None
    deletion_timestamp: Annotated[str | None, TIMESTAMP] = None


@dataclass(frozen=True, slots=True)
class ObjectMeta(ClusterMeta):
    """The metadata of a namespaced object."""

    namespace: Annotated[str, LABEL] = "default"


class ConditionStatus(StrEnum):
    """Unknown is a status of its own: not yet looked at."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """A ``metav1.Condition``: one observed aspect of an object."""

    type: Annotated[str, matching(r"[A-Za-z][A-Za-z0-9]{0,62}", "a CamelCase condition type")]
    status: ConditionStatus
    reason: Annotated[str, matching(r"[A-Za-z][A-Za-z0-9]{0,1023}", "a CamelCase reason")]
    message: Annotated[str, text(32768)] = ""
    observed_generation: Annotated[int | None, GENERATION] = None
    last_transition_time: Annotated[str | None, TIMESTAMP] = None


CONDITIONS = ListOf(record(Condition), most=16, key="type")


@dataclass(frozen=True, slots=True)
class NameRef:
    """A reference to an object by name, in the namespace of the object that holds it."""

    name: Annotated[str, SUBDOMAIN]


class Resource:
    """A kind: a dataclass of ``metadata``, ``spec`` and ``status`` that knows its document's head."""

    __slots__ = ()
    KIND: ClassVar[str]
    IGNORED: ClassVar[frozenset[str]] = frozenset({"apiVersion", "kind"})

    @classmethod
    def from_dict(cls, document: object, *, strict: bool = True) -> Self:
        """Decode a document of this kind; raises SpecInvalid with every error in it.

        ``strict`` reports unknown fields, which in a file are typing errors. Objects from an API server are
        read with ``strict=False``: a field that a newer operator or agent added is none of ours to refuse.
        """
        report = Report(strict)
        if isinstance(document, Mapping):
            for name, expected in (("apiVersion", API_VERSION), ("kind", cls.KIND)):
                if document.get(name) != expected:
                    report.refuse(name, document.get(name), f'"{expected}"')
        decoded = record(cls).decode(document, "", report)
        if report.errors:
            raise SpecInvalid(report.errors)
        assert isinstance(decoded, cls)
        return decoded

    def to_dict(self) -> dict[str, Any]:
        """The document, of new dicts, lists and scalars only: fit for JSON and YAML."""
        return {"apiVersion": API_VERSION, "kind": self.KIND, **record(type(self)).encode(self)}
