"""What the agent wants the server to run, and what the server reports: the contract of the control socket.

The whole wanted state travels every time and applying it twice changes nothing, so either side may restart
at any moment and the next :class:`ServerTarget` puts things right.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tessera_core.api.modelservice import Combine, OnTimeout

PREPROCESS = "Preprocess"
"""Format of a member that is a preprocessing stage; its file is a document of :mod:`tessera_core.api.stages`."""


class TensorTarget(msgspec.Struct, frozen=True):
    """Declared metadata of one input or output; ``row_shape`` leaves out the batch dimension."""

    name: str
    datatype: str
    row_shape: tuple[int, ...]
    buckets: tuple[tuple[int, ...], ...] = ()
    """Row shapes that variable inputs are padded up to, the first that holds them; empty: only equal
    shapes batch."""
    mixed: bool = True
    """Whether rows of several buckets may share a batch, padded to the largest."""


class DeviceTarget(msgspec.Struct, frozen=True):
    """A device, a slice of one, or a set of cores."""

    id: str
    kind: str
    """``cpu`` or ``cuda``."""
    cores: tuple[int, ...] = ()
    threads: int = 1
    memory_mib: int = 0
    environment: dict[str, str] = {}
    mps_clients: int = 0
    """Processes that a namespace may have on it, through MPS; 0: they do not share it."""
    product: str = ""
    """Of a GPU, as its device class says it. This and what follows names what is built for it; a processor's is looked up."""
    slice: str = ""
    sm_count: int = 0
    driver: str = ""


class InstanceTarget(msgspec.Struct, frozen=True):
    device: str
    count: int = 1
    cap: int | None = None
    """Rows per batch on this device, as planned; None: the member's."""
    setpoint: int | None = None
    """Rows per batch now, where it differs from what was planned."""
    active: int | None = None
    """How many of ``count`` take batches now; the others stand by, loaded and warm. None: all."""
    variant: str = ""
    """How the model is run there (:mod:`tessera_core.tuning.variants`); empty: untuned. Another one replaces the instances,
    create before destroy.
    """


class ServiceTime(msgspec.Struct, frozen=True):
    """Batch time as the profile has it: ``tau0_ms + alpha_ms · rows``."""

    alpha_ms: float
    tau0_ms: float

    def seconds(self, rows: float) -> float:
        return (self.tau0_ms + self.alpha_ms * rows) / 1e3


class PeerTarget(msgspec.Struct, frozen=True):
    """Another server that has ready instances of a member."""

    address: str
    """``host:port`` of its gRPC front end."""
    rows_per_second: float
    """What its instances of the member carry together."""


class MemberTarget(msgspec.Struct, frozen=True):
    name: str
    path: str
    """The model file on this node, fetched and checked by the agent; empty without instances here."""
    format: str
    digest: str
    """Of the model file. Peers answer for this digest only; empty, for whichever they serve."""
    max_batch: int
    """Largest batch, warmed on load; more rows than this in one request are refused."""
    cap: int
    """Setpoint: rows per batch now, at most ``max_batch``, where an instance has no cap of its own."""
    instances: tuple[InstanceTarget, ...]
    allow_code: bool = False
    weight: float = 1.0
    required: bool = True
    service_time: ServiceTime | None = None
    """None: nothing is known, nothing is dropped before its deadline."""
    peers: tuple[PeerTarget, ...] = ()
    """Where the member also runs: work goes there when it is expected to be answered sooner."""


class ServiceTarget(msgspec.Struct, frozen=True):
    name: str
    """``<namespace>.<name>``."""
    version: str
    members: tuple[MemberTarget, ...]
    combine: Combine
    min_members: int
    on_timeout: OnTimeout
    slo_ms: float
    percent: float
    inputs: tuple[TensorTarget, ...] = ()
    outputs: tuple[TensorTarget, ...] = ()
    hold: int = 0
    """Most requests that may wait for the first instance or peer; 0: they are refused while there is none."""
    needs_key: bool = False
    """Whether only requests with one of its keys may name it. The keys are not here: targets are kept on disk."""

    @property
    def stage(self) -> MemberTarget | None:
        """What makes the other members' inputs of encoded media: the last member, where its format says so."""
        return self.members[-1] if self.members[-1].format == PREPROCESS else None

    @property
    def answering(self) -> tuple[MemberTarget, ...]:
        """The members whose answers are combined."""
        return self.members[:-1] if self.stage is not None else self.members


class ServerTarget(msgspec.Struct, frozen=True):
    devices: tuple[DeviceTarget, ...] = ()
    services: tuple[ServiceTarget, ...] = ()
    epoch: int = 0


class BatchReport(msgspec.Struct, frozen=True, array_like=True):
    device: str
    worker: int
    """Incarnation of the process that ran it."""
    rows: int
    ms: float
    """From the dispatcher's message to the answer."""


class MemberReport(msgspec.Struct, frozen=True):
    name: str
    digest: str
    wanted: int
    ready: int
    cap: int
    queued_rows: int
    batches: int
    rows: int
    memory_mib: float
    device: str
    restarts: int
    problem: str = ""
    """Why instances are missing, in words for the user."""
    arrived: int = 0
    """Rows that came for its instances here, also those that were refused. This and what follows only grows."""
    requests: int = 0
    """That these rows came in."""
    latency_s: float = 0.0
    """Of all that were answered, from arrival in the queue to the end of the batch."""
    latency_buckets: tuple[int, ...] = ()
    """How many were answered, by :data:`tessera_core.perf.histogram.BOUNDS_S`."""
    lost: int = 0
    """Requests that were refused, dropped or withdrawn."""
    groups: int = 0
    """Of gaps between one piece of work and the next: as :class:`tessera_core.batching.arrivals.Arrivals` counts them."""
    gaps: int = 0
    gaps_s: float = 0.0
    groups_s2: float = 0.0
    recent: tuple[BatchReport, ...] = ()
    """The newest of ``batches``, oldest first; in a gang, of all members together."""


class ServiceReport(msgspec.Struct, frozen=True):
    """Counters only grow; the agent takes differences."""

    name: str
    version: str
    ready: bool
    slo_ms: float
    good: int
    """Answered within the SLO."""
    total: int
    """Submitted and valid, whatever became of them; client cancellations left out."""
    arrivals_rows: int
    codes: dict[str, int]
    """Requests by HTTP status."""
    latency_buckets: tuple[int, ...]
    """Counts by :data:`tessera_core.perf.histogram.BOUNDS_S`, of answered requests."""
    members: tuple[MemberReport, ...]
    problem: str = ""
    held: int = 0
    """Requests that wait for the first instance or peer."""
    joined: int = 0
    """Processes in which all members run as one."""


class InstanceReport(msgspec.Struct, frozen=True):
    """Instances of one member on one device: of all versions, and those that are leaving too."""

    service: str
    member: str
    device: str
    wanted: int
    """Of the newest version; 0: all of them are leaving."""
    exist: int
    ready: int
    """Of the version that serves."""
    cap: int
    memory_mib: float
    variants: tuple[str, ...] = ()
    """That those that are ready run: two while one takes the other's place."""
    faulty: dict[str, str] = {}
    """Variants that are not to serve on, and why."""


class WorkerReport(msgspec.Struct, frozen=True):
    incarnation: int
    pid: int
    device: str


class Ports(msgspec.Struct, frozen=True):
    """Where the server listens: what was asked for, or what was free where that was 0."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class ServerReport(msgspec.Struct, frozen=True):
    epoch: int
    ready: bool
    services: tuple[ServiceReport, ...]
    workers: tuple[WorkerReport, ...]
    arena_used: int
    arena_size: int
    monotonic_s: float
    cpu_s: float
    """Processor time of the dispatcher: front ends, queues and combination."""
    ports: Ports
    instances: tuple[InstanceReport, ...] = ()
    draining: bool = False
    """Whether it was told to end: clients are to look away."""
    mps_problem: str = ""
    """Why instances that were to share a GPU through MPS run in one process."""


class ProfileRequest(msgspec.Struct, frozen=True):
    """Measure a member on a device: every (batch, instances) cell, within a bounded time."""

    device: DeviceTarget
    member: MemberTarget
    inputs: tuple[TensorTarget, ...]
    outputs: tuple[TensorTarget, ...]
    batches: tuple[int, ...]
    instances: tuple[int, ...]
    cell_s: float
    """Seconds of measuring per cell, at most."""
    most_ms: float
    """Larger batches than the first one that takes longer are not measured: no SLO could use them."""
    hang_s: float
    """A batch that takes longer ends the measurement."""
    variant: str = ""


class ProfileCell(msgspec.Struct, frozen=True):
    batch: int
    instances: int
    p50_ms: float
    p99_ms: float
    throughput: float
    memory_mib: float


class ProfileReport(msgspec.Struct, frozen=True):
    engine: str
    cells: tuple[ProfileCell, ...]
    max_rows: int


class TuneRequest(msgspec.Struct, frozen=True):
    """Build one variant of a member, check its answers, and measure it in turns with the untuned model.

    Whoever hangs up ends it: its processes are killed, and nothing of it stays but artefacts that are whole.
    """

    member: MemberTarget
    inputs: tuple[TensorTarget, ...]
    outputs: tuple[TensorTarget, ...]
    variant: str
    tolerance: float
    """Largest difference of an answer from the untuned model's, relative to the scale of its output."""
    devices: tuple[DeviceTarget, ...]
    """The share that serves, for which it is built; then half and twice of it, where there are such. Nothing else may run
    there meanwhile.
    """
    batches: tuple[int, ...]
    cell_s: float
    """Seconds of measuring per cell and way, at most."""
    rounds: int
    """Turns of variant and untuned in every cell; medians over them are told."""
    build_limit_s: float
    hang_s: float
    """A batch that takes longer ends it."""


class TuneCell(msgspec.Struct, frozen=True):
    device: int
    """Index in the request's devices: 0 is the share that serves."""
    batch: int
    instances: int
    p50_ms: float
    p99_ms: float
    throughput: float
    untuned_p50_ms: float
    untuned_p99_ms: float
    untuned_throughput: float
    turns: int
    """That either had."""
    p99_wins: int
    """Turns in which the variant's p99 was shorter than that of the untuned one's turn beside it."""
    throughput_wins: int


class TuneOutcome(msgspec.Struct, frozen=True):
    """What became of one variant. :func:`tessera_core.tuning.verdict.judge` says what follows."""

    variant: str
    key: str
    """Of the artefact in the server's store; empty where the variant needs none."""
    engine: str
    """Library and version that runs it; empty where it could not be loaded."""
    problem: str
    """Why it was not built, loaded or measured, for the user; empty if it was."""
    error: float
    """Worst difference from the untuned answers, relative to the scale of the output; -1 where there was no answer. Answers
    that are not finite where the untuned ones are count as 1e9.
    """
    cells: tuple[TuneCell, ...]
    build_s: float = 0.0


def placed_alike(target: ServiceTarget, devices: Mapping[str, DeviceTarget]) -> bool:
    """Whether the members may run as one (:mod:`tessera_runtime.dispatch.gang`): everywhere beside each other with
    the same batches, and none that an answer may do without, which must not wait for it. On single cores only: where
    there are more, members of their own processes use them better.
    """
    first, *others = target.members
    return (
        bool(others and first.instances)
        and target.stage is None
        and all(member.required for member in target.members)
        and all(_is_single_core(devices[place.device]) for place in first.instances)
        and all(_placed(member) == _placed(first) for member in others)
    )


def _is_single_core(device: DeviceTarget) -> bool:
    return device.kind == "cpu" and device.threads == 1 and len(device.cores) <= 1


def _placed(member: MemberTarget) -> object:
    """What was planned of it: what is set now may differ for a moment."""
    places = [(place.device, place.count, place.cap) for place in member.instances]
    return places, member.cap, member.max_batch
