"""Who goes first and who may have how much: priority classes and quotas from documents.

    priorityClasses: [{name, value, globalDefault}, …]   or PriorityClass objects of scheduling.k8s.io/v1
    quotas:          [{namespace, slices, shares}, …]    or ResourceQuota objects of v1

Problem: Kubernetes has objects for both, but enforces them on pods, and here one pod serves all tenants of a
node. Approach: the planner enforces them, and a platform team writes them once, as the objects that it has:
a quota counts ``requests.tessera.dev/slices`` and ``requests.tessera.dev/shares`` in ``spec.hard``, where a
ResourceQuota takes the extended resources of anybody. The short forms are for files without a cluster.

Of the objects of Kubernetes only what is needed is read; the rest is the API server's to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeGuard, TypeVar

from tessera_core.api import FieldError, Quantity, SpecInvalid
from tessera_core.api.errors import Report, child, describe
from tessera_core.api.meta import LABEL, SUBDOMAIN
from tessera_core.api.records import Name, Rule, record
from tessera_core.api.scalars import MOST_INTEGER, Leaf, integer, quantity, suggestion
from tessera_core.plan.demand import BUILT_IN_PRIORITIES
from tessera_core.plan.state import Quota

# https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/#priorityclass
LEAST_PRIORITY, MOST_PRIORITY = -(2**31), 1_000_000_000
"""Values that a class may have, other than those that every cluster has."""
SLICES, SHARES = "requests.tessera.dev/slices", "requests.tessera.dev/shares"
"""Keys of a ResourceQuota's ``spec.hard``."""

_T = TypeVar("_T")
_Object = TypeVar("_Object", "_PriorityObject", "_QuotaObject")
_Number = TypeVar("_Number", int, float)

_RESERVED_PREFIX = "system-"
_SHOWN_MISSPELT = 8
_VALUE = integer(LEAST_PRIORITY, MOST_INTEGER)


def _as_the_api_server_allows(stated: PriorityClass | _PriorityObject) -> Iterator[FieldError]:
    if stated.name.startswith(_RESERVED_PREFIX):
        built_in = BUILT_IN_PRIORITIES.get(stated.name)
        if stated.value != built_in or stated.global_default:
            known = " and ".join(
                f"{name} of {value}" for name, value in BUILT_IN_PRIORITIES.items()
            )
            allowed = f'a name without "{_RESERVED_PREFIX}": every cluster has {known}'
            yield FieldError(stated.NAME_AT, repr(stated.name), allowed)
    elif stated.value > MOST_PRIORITY:
        allowed = f"an integer from {LEAST_PRIORITY} to {MOST_PRIORITY}"
        yield FieldError("value", str(stated.value), allowed)


@dataclass(frozen=True, slots=True)
class PriorityClass:
    """A name for a priority."""

    NAME_AT: ClassVar[str] = "name"
    RULES: ClassVar[tuple[Rule, ...]] = (_as_the_api_server_allows,)

    name: Annotated[str, SUBDOMAIN]
    value: Annotated[int, _VALUE]
    """The greater goes first."""
    global_default: bool = False
    """Whether it is for services that name no class."""


@dataclass(frozen=True, slots=True)
class _ClusterName:
    name: Annotated[str, SUBDOMAIN]


@dataclass(frozen=True, slots=True)
class _PriorityObject:
    API_VERSION: ClassVar[str] = "scheduling.k8s.io/v1"
    KIND: ClassVar[str] = "PriorityClass"
    NAME_AT: ClassVar[str] = "metadata.name"
    RULES: ClassVar[tuple[Rule, ...]] = (_as_the_api_server_allows,)

    metadata: _ClusterName
    value: Annotated[int, _VALUE]
    global_default: bool = False

    @property
    def name(self) -> str:
        return self.metadata.name


def read_priority_class(document: object, *, strict: bool = True) -> PriorityClass:
    """One entry of ``priorityClasses``; raises SpecInvalid. ``strict`` as in ``Resource.from_dict``."""
    if not _is_object(document):
        return _decoded(PriorityClass, document, Report(strict))
    found = _object(_PriorityObject, document, Report(strict=False))
    return PriorityClass(found.name, found.value, found.global_default)


def default_class(classes: Iterable[PriorityClass]) -> str | None:
    """The class of services that name none: of several that claim it Kubernetes takes the least."""
    claims = [(each.value, each.name) for each in classes if each.global_default]
    return min(claims)[1] if claims else None


def _amount(value: object) -> float:
    found = quantity().parse(value)
    assert isinstance(found, Quantity)
    return float(found.value)


def _count(value: object) -> int:
    found = _amount(value)
    if not found.is_integer() or found > MOST_INTEGER:
        raise ValueError("not such a number")
    return int(found)


@dataclass(frozen=True, slots=True)
class _Hard:
    slices: Annotated[
        int | None,
        Leaf(f"a quantity that is a whole number up to {MOST_INTEGER}", _count),
        Name(SLICES),
    ] = None
    shares: Annotated[
        float | None, Leaf('a quantity such as 2 or "2500m"', _amount), Name(SHARES)
    ] = None


@dataclass(frozen=True, slots=True)
class _Selector:
    """Read for being there only."""


def _whole_namespaces_only(spec: _QuotaSpec) -> Iterator[FieldError]:
    if spec.hard == _Hard():
        return  # a quota of other things, which may well have a scope
    allowed = f"no scope beside {SLICES} or {SHARES}: both count for the whole namespace"
    if spec.scopes:
        yield FieldError("scopes", describe(spec.scopes), allowed)
    if spec.scope_selector:
        yield FieldError("scopeSelector", "a selector", allowed)


@dataclass(frozen=True, slots=True)
class _QuotaSpec:
    RULES: ClassVar[tuple[Rule, ...]] = (_whole_namespaces_only,)

    hard: _Hard = _Hard()
    scopes: tuple[str, ...] = ()
    scope_selector: _Selector | None = None


@dataclass(frozen=True, slots=True)
class _NamespacedName:
    name: Annotated[str, SUBDOMAIN]
    namespace: Annotated[str, LABEL] = "default"


@dataclass(frozen=True, slots=True)
class _QuotaObject:
    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "ResourceQuota"

    metadata: _NamespacedName
    spec: _QuotaSpec = _QuotaSpec()


@dataclass(frozen=True, slots=True)
class StatedQuota:
    """A quota and what it is called, which no other may be."""

    name: str
    """The namespace, or ``<namespace>/<name>`` of a ResourceQuota."""
    quota: Quota


def read_quota(document: object, *, strict: bool = True) -> StatedQuota:
    """One entry of ``quotas``; raises SpecInvalid. ``strict`` as in ``Resource.from_dict``."""
    if not _is_object(document):
        quota = _decoded(Quota, document, Report(strict))
        return StatedQuota(quota.namespace, quota)
    misspelt = list(islice(_misspelt(document), _SHOWN_MISSPELT)) if strict else []
    found = _object(_QuotaObject, document, Report(strict=False, errors=misspelt))
    namespace, hard = found.metadata.namespace, found.spec.hard
    quota = Quota(namespace, hard.slices, hard.shares)
    return StatedQuota(f"{namespace}/{found.metadata.name}", quota)


def effective_quotas(stated: Iterable[StatedQuota]) -> tuple[Quota, ...]:
    """One quota per namespace that has any, sorted: all of a namespace hold, so the smallest count."""
    least: dict[str, Quota] = {}
    for each in stated:
        one = each.quota
        other = least.get(one.namespace, one)
        slices, shares = _least(one.slices, other.slices), _least(one.shares, other.shares)
        if slices is not None or shares is not None:
            least[one.namespace] = Quota(one.namespace, slices, shares)
    return tuple(least[namespace] for namespace in sorted(least))


def _least(one: _Number | None, other: _Number | None) -> _Number | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _is_object(document: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(document, Mapping) and "kind" in document


def _decoded(cls: type[_T], document: object, report: Report) -> _T:
    decoded = record(cls).decode(document, "", report)
    if report.errors:
        raise SpecInvalid(report.errors)
    assert isinstance(decoded, cls)
    return decoded


def _object(cls: type[_Object], document: Mapping[Any, Any], report: Report) -> _Object:
    for name, expected in (("apiVersion", cls.API_VERSION), ("kind", cls.KIND)):
        if document.get(name) != expected:
            report.refuse(name, document.get(name), f'"{expected}"')
    return _decoded(cls, document, report)


def _misspelt(document: Mapping[Any, Any]) -> Iterator[FieldError]:
    """A resource of ours that there is not would be a quota that never counts."""
    spec = document.get("spec")
    hard = spec.get("hard") if isinstance(spec, Mapping) else None
    for key in hard if isinstance(hard, Mapping) else ():
        if isinstance(key, str) and "tessera.dev/" in key and key not in (SLICES, SHARES):
            allowed = f"{SLICES}, {SHARES}{suggestion(key, [SLICES, SHARES])}"
            yield FieldError(child("spec.hard", key), "an unknown field", allowed)
