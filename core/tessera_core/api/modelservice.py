"""ModelService: an ensemble of models, the latency it must keep, and the load to expect. Written by the user.

The spec says what is wanted and leaves how to the system: batch sizes, instance counts and places are found by
measuring and planning, so none of them is a field here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.members import DIGEST, Member
from tessera_core.api.meta import (
    CONDITIONS,
    GENERATION,
    LABEL,
    LABELS,
    SERVICE_LABEL,
    SUBDOMAIN,
    Condition,
    NameRef,
    ObjectMeta,
    Pairs,
    Resource,
)
from tessera_core.api.preprocess import Preprocess
from tessera_core.api.quantities import format_decimal
from tessera_core.api.records import ListOf, Name, Record, Rule, record
from tessera_core.api.scalars import decimal, duration, integer, number, text
from tessera_core.api.stages import STAGE, stage_of
from tessera_core.api.tensors import InputTensor, Tensor
from tessera_core.api.tuning import NO_TUNING
from tessera_core.api.tuning import Precision as Precision
from tessera_core.api.tuning import Tuning as Tuning
from tessera_core.api.tuning import TuningMode as TuningMode

MOST_MEMBERS = 32
MOST_PLACED = MOST_MEMBERS + 1
"""With preprocessing."""
MOST_OBJECTIVES = 8
MOST_REPLICAS = 10_000
MOST_COUNT = 2**63 - 1


class Combine(StrEnum):
    """How the members' outputs become one answer."""

    MEAN = "Mean"
    WEIGHTED_MEAN = "WeightedMean"
    SOFT_VOTE = "SoftVote"
    MAJORITY_VOTE = "MajorityVote"
    WEIGHTED_VOTE = "WeightedVote"
    MAX = "Max"
    MEDIAN = "Median"
    CONCAT = "Concat"
    NONE = "None"
    """No combination: every member's outputs are answered as they are."""

    @property
    def is_weighted(self) -> bool:
        return self in (Combine.WEIGHTED_MEAN, Combine.WEIGHTED_VOTE)


class OnTimeout(StrEnum):
    """What a request gets when members have not answered at its deadline."""

    FAIL = "Fail"
    PARTIAL = "Partial"


class Isolation(StrEnum):
    """What the instances may share: a device, a device but no slice of it, or neither."""

    ANY = "Any"
    PARTITION = "Partition"
    EXCLUSIVE = "Exclusive"


class ScalingMode(StrEnum):
    """Who decides capacity: the SLO, the scale subresource, or the number written down.

    With SLO, nodes set batch sizes and active instances from second to second, within what the plan places; with the others
    they keep to the plan.
    """

    SLO = "SLO"
    EXTERNAL = "External"
    FIXED = "Fixed"


class Surge(StrEnum):
    """Whether a rollout may take spare capacity for the new version before the old one leaves."""

    AUTO = "Auto"
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How members become one answer, and what happens when some are late."""

    combine: Combine
    """May be left out of a document with one member, where it is None."""
    min_members: Annotated[int, integer(1, MOST_MEMBERS)]
    """Fewest members of an answer; the required ones are always among them. A document may leave it out: then
    it is the number of required members, and at least 1."""
    on_timeout: OnTimeout = OnTimeout.FAIL
    """Whether members that are late, not only those that failed, may be missing from an answer."""


@dataclass(frozen=True, slots=True)
class Objective:
    """``percent`` of the requests of any ``window`` finish within ``target``, end to end in the server."""

    target_s: Annotated[float, duration(above=0, most=3600), Name("target")]
    """Seconds of queueing, preprocessing, inference and combination together."""
    percent: Annotated[float, decimal(above=0, below=100, example="99")]
    window_s: Annotated[float, duration(above=0), Name("window")] = 300.0


@dataclass(frozen=True, slots=True)
class Slo:
    """The latency to keep; the first objective is the one that capacity is planned for."""

    objectives: Annotated[tuple[Objective, ...], ListOf(record(Objective), 1, MOST_OBJECTIVES)]


@dataclass(frozen=True, slots=True)
class Traffic:
    """The load to expect: a hint that the measured rate replaces."""

    requests_per_second: Annotated[float, number(least=0, most=1e7)] = 0.0
    """0: none expected, or not known; the least capacity that ``scaling`` allows is planned."""
    items_per_request: Annotated[int, integer(1, 65536)] = 1
    """Rows that a request carries."""
    burstiness: Annotated[float, decimal(above=0, most=1e4, example="1.0")] = 1.0
    """Squared coefficient of variation of the time between requests; Poisson is 1."""


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Objects that carry all of these labels."""

    match_labels: Annotated[Pairs, LABELS]


@dataclass(frozen=True, slots=True)
class Spread:
    """How far apart the instances are kept."""

    min_nodes: Annotated[int, integer(1, 1000)] = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the members may run."""

    isolation: Isolation = Isolation.ANY
    pool_selector: LabelSelector | None = None
    """Labels of RuntimePools; absent: any pool."""
    products: Annotated[tuple[str, ...], ListOf(text(128), most=32)] = ()
    """Device products such as ``NVIDIA-H100-80GB-HBM3``, with ``-MPS`` only those under MPS; empty: any."""
    spread: Spread = Spread()


def _min_replicas_at_most_max(scaling: Scaling) -> Iterator[FieldError]:
    if scaling.max_replicas is not None and scaling.min_replicas > scaling.max_replicas:
        allowed = f"at most maxReplicas, which is {scaling.max_replicas}"
        yield FieldError("minReplicas", str(scaling.min_replicas), allowed)


def _fixed_has_one_number(scaling: Scaling) -> Iterator[FieldError]:
    if scaling.mode is ScalingMode.FIXED and scaling.max_replicas is not None:
        allowed = "no maxReplicas with mode Fixed, where minReplicas is the number"
        yield FieldError("maxReplicas", str(scaling.max_replicas), allowed)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds of the capacity; one replica is one planned capacity unit, a full set of members."""

    RULES: ClassVar[tuple[Rule, ...]] = (_min_replicas_at_most_max, _fixed_has_one_number)

    mode: ScalingMode = ScalingMode.SLO
    min_replicas: Annotated[int, integer(0, MOST_REPLICAS)] = 1
    """0: scales to zero after ``idle_timeout_s`` without a request. With mode Fixed, the number."""
    max_replicas: Annotated[int | None, integer(1, MOST_REPLICAS)] = None
    """Absent: only the pools limit it."""
    idle_timeout_s: Annotated[float, duration(above=0), Name("idleTimeout")] = 900.0
    max_held_requests: Annotated[int, integer(0, 100_000)] = 100
    """Requests that wait while the service scales up from zero."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a new version replaces the old one."""

    surge: Surge = Surge.AUTO
    drain_timeout_s: Annotated[float, duration(above=0), Name("drainTimeout")] = 60.0
    progress_deadline_s: Annotated[float, duration(above=0), Name("progressDeadline")] = 600.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may name the service in a request; absent: whoever reaches its port."""

    keys_secret_ref: NameRef
    """Every value of the Secret, in the ModelService's namespace, is a key; a request has to carry one of them."""


def _weights_match_the_rule(spec: ModelServiceSpec) -> Iterator[FieldError]:
    combine = spec.ensemble.combine
    for index, member in enumerate(spec.members):
        path = f"members[{index}].weight"
        if combine.is_weighted and member.weight is None:
            yield FieldError(path, "nothing", f"a decimal string, as combine is {combine.value}")
        elif not combine.is_weighted and member.weight is not None:
            allowed = (
                f"no weight with combine {combine.value}; "
                f"{Combine.WEIGHTED_MEAN.value} and {Combine.WEIGHTED_VOTE.value} have weights"
            )
            yield FieldError(path, format_decimal(member.weight), allowed)


def _quorum_within_members(spec: ModelServiceSpec) -> Iterator[FieldError]:
    if spec.ensemble.min_members > len(spec.members):
        found, allowed = str(spec.ensemble.min_members), f"at most the {len(spec.members)} members"
        yield FieldError("ensemble.minMembers", found, allowed)


def _quorum_can_be_short(spec: ModelServiceSpec) -> Iterator[FieldError]:
    """What lets members be missing must be able to do so, or the user expects what cannot happen."""
    ensemble, everyone = spec.ensemble, len(spec.members)
    if not all(member.required for member in spec.members):
        if ensemble.min_members == everyone:
            allowed = "fewer than all members, or required: true on each of them"
            yield FieldError("ensemble.minMembers", str(everyone), allowed)
    elif ensemble.on_timeout is OnTimeout.PARTIAL:
        allowed = "Fail, or required: false on the members that may be missing; all are required"
        yield FieldError("ensemble.onTimeout", "Partial", allowed)
    elif ensemble.min_members < everyone:
        allowed = f"{everyone}, or required: false on the members that may be missing"
        yield FieldError("ensemble.minMembers", str(ensemble.min_members), allowed)


def _replicas_are_external(spec: ModelServiceSpec) -> Iterator[FieldError]:
    if spec.replicas is not None and spec.scaling.mode is not ScalingMode.EXTERNAL:
        allowed = f"no replicas unless scaling.mode is External; it is {spec.scaling.mode.value}"
        yield FieldError("replicas", str(spec.replicas), allowed)


def _no_member_is_called_as_the_stage(spec: ModelServiceSpec) -> Iterator[FieldError]:
    for index, member in enumerate(spec.members):
        if spec.preprocess is not None and member.name == STAGE:
            allowed = "another name; with spec.preprocess this one is the preprocessing stage's"
            yield FieldError(f"members[{index}].name", STAGE, allowed)


@dataclass(frozen=True, slots=True)
class ModelServiceSpec:
    """What to serve and how well."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        _weights_match_the_rule,
        _quorum_within_members,
        _quorum_can_be_short,
        _replicas_are_external,
        _no_member_is_called_as_the_stage,
    )

    members: Annotated[tuple[Member, ...], ListOf(record(Member), 1, MOST_MEMBERS, key="name")]
    ensemble: Ensemble
    slo: Slo
    replicas: Annotated[int | None, integer(0, MOST_REPLICAS)] = None
    """Written through the scale subresource; only with scaling mode External."""
    inputs: Annotated[
        tuple[InputTensor, ...], ListOf(record(InputTensor), most=64, key="name")
    ] = ()
    outputs: Annotated[tuple[Tensor, ...], ListOf(record(Tensor), most=64, key="name")] = ()
    preprocess: Preprocess | None = None
    traffic: Traffic = Traffic()
    placement: Placement = Placement()
    scaling: Scaling = Scaling()
    rollout: Rollout = Rollout()
    tuning: Tuning = NO_TUNING
    priority_class_name: Annotated[str | None, SUBDOMAIN] = None
    service_account_name: Annotated[str | None, SUBDOMAIN] = None
    """Identity for fetching the models."""
    access: Access | None = None

    @property
    def placed(self) -> tuple[Member, ...]:
        """What is measured and placed: the members, and after them the stage that makes their inputs, if there is one."""
        return (
            self.members if self.preprocess is None else (*self.members, stage_of(self.preprocess))
        )

    @staticmethod
    def complete(document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The document with those defaults of ``ensemble`` that depend on the members."""
        members, ensemble = document.get("members"), document.get("ensemble")
        if ensemble is None:
            ensemble = {}
        if not isinstance(ensemble, Mapping):
            return document
        if not isinstance(members, list | tuple):
            members = ()
        optional = sum(isinstance(m, Mapping) and m.get("required") is False for m in members)
        quorum = min(max(1, len(members) - optional), MOST_MEMBERS)
        defaults: dict[Any, Any] = {"minMembers": quorum}
        if len(members) == 1:
            defaults["combine"] = Combine.NONE.value
        written = {name: value for name, value in ensemble.items() if value is not None}
        return {**document, "ensemble": defaults | written}


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What became of one member."""

    name: Annotated[str, LABEL]
    digest: Annotated[str | None, DIGEST] = None
    """Of the file that was fetched."""
    uri: Annotated[str | None, text(2048)] = None
    """Where it was fetched; the digest says nothing of another one."""
    ready: Annotated[int, integer()] = 0
    """Instances that answer."""
    instances: Annotated[int, integer()] = 0
    """Instances that are placed."""
    device: Annotated[str | None, text(256)] = None
    """Device class, e.g. ``NVIDIA-H100-80GB-HBM3/1g.10gb``."""
    batch: Annotated[int | None, integer(1)] = None
    """Batch cap in force, rows."""


@dataclass(frozen=True, slots=True)
class SloStatus:
    """What was measured over the last window; no traffic is ``total: 0``, with no percentiles."""

    good: Annotated[int, integer(0, MOST_COUNT)] = 0
    total: Annotated[int, integer(0, MOST_COUNT)] = 0
    attainment: Annotated[float | None, decimal(least=0, most=1)] = None
    """``good / total``."""
    p50_s: Annotated[float | None, duration(), Name("p50")] = None
    p99_s: Annotated[float | None, duration(), Name("p99")] = None
    requests_per_second: Annotated[float, number(least=0)] = 0.0
    window_s: Annotated[float | None, duration(above=0), Name("window")] = None


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What is missing for the SLO to hold at the expected load."""

    requests_per_second: Annotated[float, number(least=0)]
    devices: Annotated[int, integer()]
    reason: Annotated[str, text(1024)]


@dataclass(frozen=True, slots=True)
class ModelServiceStatus:
    """What is; kept small, as the allocation is in the RuntimeNodes."""

    observed_generation: Annotated[int | None, GENERATION] = None
    url: Annotated[str | None, text(2048)] = None
    replicas: Annotated[int | None, integer()] = None
    instances: Annotated[int | None, integer()] = None
    """Instances that answer, of all members together."""
    selector: Annotated[str | None, text(4096)] = None
    """Label selector for the scale subresource: unique and not empty."""
    plan_ref: NameRef | None = None
    conditions: Annotated[tuple[Condition, ...], CONDITIONS] = ()
    members: Annotated[
        tuple[MemberStatus, ...], ListOf(record(MemberStatus), most=MOST_PLACED, key="name")
    ] = ()
    slo: SloStatus | None = None
    shortfall: Shortfall | None = None


@dataclass(frozen=True, slots=True)
class ModelService(Resource):
    """An ensemble served under a latency SLO."""

    KIND: ClassVar[str] = "ModelService"

    metadata: Annotated[ObjectMeta, Record(ObjectMeta, name=Annotated[str, SERVICE_LABEL])]
    spec: ModelServiceSpec
    status: ModelServiceStatus = ModelServiceStatus()

    @property
    def served_name(self) -> str:
        """What requests call it. The labels hold no dot, so the name splits in one way only."""
        return f"{self.metadata.namespace}.{self.metadata.name}"
