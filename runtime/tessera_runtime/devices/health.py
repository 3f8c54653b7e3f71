"""Whether a GPU may be used: from what its driver says of it, over time. Pure; time is an argument.

Problem: an Xid says once what stays true until the GPU was reset; NVML says other things again and again; some last a second.
Who moves models whenever one of them changes does more harm than the GPU. Approach: what is seen is a *reading* (a state, asked
for again and again) or an *Xid* (an event), and both end in one of

- **now**: the GPU is unwell as long as readings say so;
- **a fault**: it is unwell until a reset or a restart of the machine was seen, whatever readings say;
- **a remark**: it goes on, and its problem is told.

A GPU returns when it was well for ``RETURN_S``, and for twice as long after each further fall within a day.

A reset in place cannot be seen directly. It shows in counters that begin anew, and in a GPU or driver that was away and
answers again. Everything else that resets a GPU takes the pod away from it first, as it holds the GPU, or restarts the
machine: what is remembered is of one pod and one boot.

All of it is of whole GPUs, also where an Xid names a MIG instance: what only a reset cures, no neighbour survives, and what is
contained in an instance is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from tessera_core.api.runtimenode import Health
from tessera_runtime.devices.xids import LINKED, Cure, cure_of

RETURN_S = 300.0
"""How long a GPU has to be well before it is used again: coming back too soon costs loading its copies twice."""
MOST_RETURN_S = 4 * 3600.0
FORGET_S = 24 * 3600.0
"""Well for so long, and an earlier fall no longer counts."""
WARM_S = 60.0
"""How long clocks have to have been held down for temperature until that is told: it comes and goes."""
HOT_S = 300.0
"""How long the hardware has to have slowed the clocks for its temperature: longer than plans take to count with slower
batches (``operator/drift.py``), which they can only for all GPUs of a kind. A single one of them is then better left to cool."""
MOST_FAULTS = 16
"""Of one GPU at once."""
MOST_PROBLEM = 256
"""Characters, as in a RuntimeNode."""


class Answer(Enum):
    """What became of asking for the GPU."""

    YES = "answers"
    LOST = "is lost"
    """NVML says so in as many words."""
    NO_DRIVER = "has no driver"
    ERROR = "does not answer"


class Action(StrEnum):
    """What the driver wants done (nvmlDeviceGpuRecoveryAction_t), in words."""

    NONE = "nothing"
    RESET = "a reset of the GPU"
    REBOOT = "a restart of the machine"
    DRAIN_AND_RESET = "draining its NVLink peers, and a reset"
    PEERS = "draining its NVLink peers"
    """Nothing that runs here uses more than one GPU."""
    OTHER = "an action that this version does not know"


class Slowdown(StrEnum):
    """Why clocks are held down (nvmlClocksEventReasons), those that are worth telling."""

    HARDWARE_THERMAL = "hw_thermal"
    """Clocks are halved, or less."""
    SOFTWARE_THERMAL = "sw_thermal"
    POWER_BRAKE = "hw_power_brake"
    HARDWARE = "hw_slowdown"
    """One of the two of the hardware, where the driver does not tell them apart."""


_THERMAL = frozenset({Slowdown.HARDWARE_THERMAL, Slowdown.SOFTWARE_THERMAL})
_DOUBTFUL = frozenset({Answer.NO_DRIVER, Answer.ERROR})
"""May be of one call: told, and acted on when the next one fails too."""
_AWAY = frozenset({Answer.LOST, Answer.NO_DRIVER})
"""A GPU that answers again was reset by what brought it back."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What NVML says of one GPU at one moment. None: this GPU or driver does not tell."""

    answer: Answer = Answer.YES
    error: str = ""
    """In NVML's words, where it does not answer."""
    action: Action | None = None
    uncorrected: int | None = None
    """ECC errors since the last reset that were not corrected."""
    remap_failed: bool | None = None
    """Whether a memory row could not be replaced; None: a GPU before Ampere, which replaces none."""
    remap_pending: bool = False
    """Whether the next reset replaces a row, or retires a page."""
    slowdowns: frozenset[Slowdown] = frozenset()
    slices: frozenset[str] | None = None
    """UUIDs of its MIG instances; None: it is not cut."""


@dataclass(frozen=True, slots=True)
class Xid:
    """An event of one GPU."""

    code: int
    gpu_instance: int | None = None
    """Id of the MIG instance that it is about; None: the GPU."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What only a reset or a restart takes away."""

    problem: str
    cure: Cure


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one GPU. Times are monotonic, of one boot."""

    faults: tuple[Fault, ...] = ()
    unwell_s: float | None = None
    """When it was last; None: it is in use, and well."""
    problem: str = ""
    """The last reason why it was unwell."""
    falls: int = 0
    fell_s: float = 0.0
    """When the last of them ended."""
    answer: Answer = Answer.YES
    """The last one."""
    uncorrected: int | None = None
    warm_s: float | None = None
    """Since when its clocks are held down for its temperature."""
    hot_s: float | None = None
    """Since when the hardware does that."""
    slices: frozenset[str] = frozenset()
    """That were there, and that nobody ordered to go."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is told of one GPU."""

    health: Health = Health.HEALTHY
    problem: str = ""
    gone: frozenset[str] = frozenset()
    """UUIDs of MIG instances that were there and that nobody ordered to go."""


def look(
    before: Record, reading: Reading, xids: Iterable[Xid], now_s: float, *, cut_ordered: bool
) -> tuple[Record, Verdict]:
    """What is remembered and told after a reading and the Xids since the one before it.

    ``cut_ordered``: whether the operator has the GPU cut, so that instances come and go.
    """
    faults, passing = _after(before, reading, xids)
    slices, gone = _slices(before, reading, cut_ordered)
    after = replace(
        before,
        faults=faults,
        answer=reading.answer,
        uncorrected=before.uncorrected if reading.uncorrected is None else reading.uncorrected,
        warm_s=_since(before.warm_s, bool(reading.slowdowns & _THERMAL), now_s),
        hot_s=_since(before.hot_s, Slowdown.HARDWARE_THERMAL in reading.slowdowns, now_s),
        slices=slices,
    )
    doubtful = reading.answer in _DOUBTFUL and before.answer is Answer.YES
    unwell = [*(each.problem for each in faults), *passing, *_now(after, reading, now_s)]
    if reading.answer is not Answer.YES and not doubtful:
        unwell.append(_silence(reading))
    remarks = [*_remarks(after, reading, now_s), *_missing(gone)]
    if unwell:
        if before.unwell_s is None:
            after = replace(after, falls=_falls(before, now_s) + 1)
        after = replace(after, unwell_s=now_s, problem=unwell[0])
    elif before.unwell_s is not None:
        if doubtful or now_s - before.unwell_s < back_s(before.falls):
            unwell = [f"watched until it was well for {back_s(before.falls):g} s: {before.problem}"]
        else:
            after = replace(after, unwell_s=None, problem="", fell_s=now_s)
    elif doubtful:
        return after, _verdict(Health.UNKNOWN, [_silence(reading)], gone)
    health = Health.UNHEALTHY if unwell else Health.HEALTHY
    return after, _verdict(health, [*unwell, *remarks], gone)


def remembered(record: Record) -> Verdict:
    """What is told of a GPU before it was read for the first time."""
    if record.unwell_s is None:
        return Verdict()
    return Verdict(Health.UNHEALTHY, record.problem)


def back_s(falls: int) -> float:
    """Seconds that a GPU has to be well before it returns from the ``falls``-th fall, counted from 1."""
    return min(RETURN_S * 2.0 ** min(falls - 1, 16), MOST_RETURN_S)


def _falls(before: Record, now_s: float) -> int:
    """Earlier falls that still count."""
    return before.falls if now_s - before.fell_s < FORGET_S else 0


def _after(
    before: Record, reading: Reading, xids: Iterable[Xid]
) -> tuple[tuple[Fault, ...], list[str]]:
    """The faults that it has now, and what passes by itself."""
    faults = [each for each in before.faults if not _is_cured(each, before, reading)]
    passing = []
    for xid in xids:
        if reading.action is not None and xid.code in LINKED:
            continue  # the driver says in the reading what is to be done
        cure, problem = cure_of(xid.code), _words(xid)
        if cure is Cure.TIME:
            passing.append(problem)
        elif cure is not Cure.NOTHING:
            faults.append(Fault(f"{problem}: needs {cure}", cure))
    if _has_new_errors(before, reading):
        faults.append(Fault(f"uncorrected ECC errors: needs {Cure.RESET}", Cure.RESET))
    return tuple(dict.fromkeys(faults))[:MOST_FAULTS], passing


def _is_cured(fault: Fault, before: Record, reading: Reading) -> bool:
    """Whether ``reading`` shows that the GPU was reset since the last one."""
    if fault.cure is not Cure.RESET or reading.answer is not Answer.YES:
        return False
    begun_anew = (
        before.uncorrected is not None
        and reading.uncorrected is not None
        and reading.uncorrected < before.uncorrected
    )
    return before.answer in _AWAY or begun_anew


def _has_new_errors(before: Record, reading: Reading) -> bool:
    """Errors of which no Xid may have been heard. A driver that says what they need is believed."""
    if reading.action is not None or reading.uncorrected is None:
        return False
    if before.uncorrected is None:
        # Nobody saw them come: only without row remapping, which came with containment, are they sure to need a reset.
        return reading.remap_failed is None and reading.uncorrected > 0
    return reading.uncorrected > before.uncorrected


def _now(after: Record, reading: Reading, now_s: float) -> Iterator[str]:
    if reading.action not in (None, Action.NONE, Action.PEERS):
        yield f"the driver asks for {reading.action}"
    if reading.remap_failed:
        yield "a memory row could not be replaced: have the GPU examined"
    if after.hot_s is not None and now_s - after.hot_s >= HOT_S:
        yield f"too hot for {HOT_S:g} s, its hardware slows the clocks: look at its cooling"


def _remarks(after: Record, reading: Reading, now_s: float) -> Iterator[str]:
    if reading.action is Action.PEERS:
        yield f"the driver asks for {reading.action}"
    if reading.remap_pending:
        yield "the next reset replaces damaged memory"
    if after.warm_s is not None and now_s - after.warm_s >= WARM_S:
        yield "its clocks are held down for its temperature"


def _missing(gone: Iterable[str]) -> Iterator[str]:
    for uuid in sorted(gone):
        yield f"MIG instance {uuid} is gone, and nobody ordered that"


def _silence(reading: Reading) -> str:
    return f"{reading.answer.value}: {reading.error}" if reading.error else reading.answer.value


def _words(xid: Xid) -> str:
    where = "" if xid.gpu_instance is None else f" of MIG instance {xid.gpu_instance}"
    return f"Xid {xid.code}{where}"


def _since(since_s: float | None, is_so: bool, now_s: float) -> float | None:
    if not is_so:
        return None
    return now_s if since_s is None else since_s


def _slices(
    before: Record, reading: Reading, cut_ordered: bool
) -> tuple[frozenset[str], frozenset[str]]:
    """What is remembered, and what of it is gone."""
    if reading.answer is not Answer.YES:
        return before.slices, frozenset()  # nothing is known of them
    present = reading.slices or frozenset()
    if cut_ordered or present - before.slices:
        return present, frozenset()  # where others came, somebody has cut it anew
    return before.slices | present, before.slices - present


def _verdict(health: Health, problems: Iterable[str], gone: frozenset[str]) -> Verdict:
    return Verdict(health, "; ".join(dict.fromkeys(problems))[:MOST_PROBLEM], gone)
