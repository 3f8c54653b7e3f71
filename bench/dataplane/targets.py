"""What the data plane is to reach, and the table that says whether it did.

The targets are the only figures written down here; everything beside them is read from a run's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.harness import Row
from rich.table import Table

NONE = math.nan

TESSERA, TRITON = "Tessera", "Triton"
LOOP, BEST_LOOP, NAIVE_LOOP = "loop", "best loop", "naive loop"
LOOPS = (LOOP, BEST_LOOP, NAIVE_LOOP)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table. ``judged`` is what is held against the targets: ``tessera`` or the ratio."""

    what: str
    tessera: float
    must: float = NONE
    aim: float = NONE
    peer: float = NONE
    peer_name: str = ""
    """Empty where no peer has such a figure."""
    base: float = NONE
    """What Tessera's figure is a share of; NaN where the figure itself is judged."""
    higher_is_better: bool = True
    note: str = ""

    @property
    def ratio(self) -> float:
        """Tessera over the base; without one, over the best peer."""
        under = self.peer if math.isnan(self.base) else self.base
        return self.tessera / under if under else NONE

    @property
    def judged(self) -> float:
        return self.tessera if math.isnan(self.base) else self.ratio

    @property
    def verdict(self) -> str:
        if math.isnan(self.judged):
            return "not measured"
        if math.isnan(self.must) and math.isnan(self.aim):
            return "reported"
        if self._reaches(self.aim):
            return "aim reached"
        return "reached" if self._reaches(self.must) else "MISSED"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}

    def _reaches(self, target: float) -> bool:
        if math.isnan(target):
            return False
        return self.judged >= target if self.higher_is_better else self.judged <= target


class Found:
    """The medians of a run, looked up by labels; NaN where something was not measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def value(self, figure: str, **labels: str) -> float:
        for row in self._rows:
            if labels.items() <= row.labels.items():
                return row.medians.get(figure, NONE)
        return NONE

    def problem(self, **labels: str) -> str:
        """Why there are no figures of such a row; empty where there are, or nothing was tried."""
        for row in self._rows:
            if labels.items() <= row.labels.items() and not row.repeats:
                return row.labels.get("problem", "")
        return ""

    def best_peer(
        self, figure: str, works: Sequence[str], higher: bool, **labels: str
    ) -> tuple[float, str]:
        """The best figure of whoever is neither Tessera nor a loop, over any wire, and its name."""
        found = [
            (row.medians[figure], _name(row))
            for row in self._rows
            if labels.items() <= row.labels.items()
            and row.labels.get("work") in works
            and row.labels.get("server") not in (TESSERA, *LOOPS, None)
            and not math.isnan(row.medians.get(figure, NONE))
        ]
        return (max if higher else min)(found, default=(NONE, "none"))


def _name(row: Row) -> str:
    fused = " (fused)" if row.labels["work"] == "fused" else ""
    return f"{row.labels['server']}{fused} {row.labels.get('protocol', '')}"


def lines(rows: Sequence[Row]) -> list[Line]:
    """Every row of the table, whether it was measured or not."""
    found = Found(rows)
    return [
        *_identity(found),
        *_networks(found),
        *_open_loop(found),
        *_inside(found),
        *_dispatchers(found),
        *_gpu(found),
    ]


def _identity(found: Found) -> list[Line]:
    made = []
    for wire, must, aim in (("http", 40.0, 20.0), ("grpc", 62.0, 30.0)):
        own = found.value("cpu_us", work="identity", server=TESSERA, protocol=wire, c="32")
        best = found.best_peer("cpu_us", ("identity",), False, protocol=wire, c="32")
        what = f"identity FP32 [1,16], {wire}, c=32: CPU µs/request"
        made.append(Line(what, own, must, aim, *best, higher_is_better=False))
    for wire, must, aim in (("http", 0.15, 0.10), ("grpc", 0.15, 0.12)):
        own = found.value("p50_ms", work="identity", server=TESSERA, protocol=wire, c="1")
        best = found.best_peer("p50_ms", ("identity",), False, protocol=wire, c="1")
        what = f"lone request, {wire}: p50 ms"
        made.append(Line(what, own, must, aim, *best, higher_is_better=False))
    return made


def _networks(found: Found) -> list[Line]:
    def rate(work: str, server: str, **labels: str) -> float:
        return found.value("rate_per_s", work=work, server=server, **labels)

    made = []
    for wire, must, aim in (("http", 0.60, 0.72), ("grpc", 0.55, 0.66)):
        best = found.best_peer("rate_per_s", ("cnn",), True, c="32", protocol=wire)
        own = rate("cnn", TESSERA, protocol=wire, c="32")
        what = f"one CNN, {wire}, c=32: req/s over the loop at the same batch and settings"
        made.append(Line(what, own, must, aim, *best, rate("cnn", LOOP)))
    for wire in ("http", "grpc"):
        best = found.best_peer("rate_per_s", ("cnn",), True, c="32", protocol=wire)
        own = rate("cnn", TESSERA, protocol=wire, c="32")
        what = f"one CNN, {wire}, c=32: req/s over the best loop, any batch and allocator"
        made.append(Line(what, own, NONE, NONE, *best, rate("cnn", BEST_LOOP)))
    for wire in ("http", "grpc"):
        own = rate("ensemble", TESSERA, protocol=wire, c="32")
        best = found.best_peer("rate_per_s", ("ensemble", "fused"), True, c="32", protocol=wire)
        what = f"ensemble of three CNNs, {wire}, c=32: req/s over the loop"
        made.append(Line(what, own, 0.65, 0.85, *best, rate("ensemble", LOOP)))
        theirs = [rate(work, TRITON, protocol=wire, c="32") for work in ("ensemble", "fused")]
        fused = rate("fused", TESSERA, protocol=wire, c="32")
        what = f"that ensemble, {wire}, c=32: req/s over the same networks fused, same server"
        name = f"{TRITON}'s own ratio"
        ratio = theirs[0] / theirs[1] if theirs[1] else NONE
        made.append(Line(what, own, 0.85, 0.95, ratio, name, fused))
    own = rate("resnet18", TESSERA, protocol="http", c="16")
    best = found.best_peer("rate_per_s", ("resnet18",), True, c="16")
    what = "ResNet-18 fp32, c=16: req/s over the naive torch loop"
    made.append(Line(what, own, 1.0, 1.5, *best, rate("resnet18", NAIVE_LOOP)))
    return made


def _open_loop(found: Found) -> list[Line]:
    made = []
    for work in ("cnn", "ensemble"):
        own = {"group": "poisson", "work": work, "server": TESSERA}
        theirs = {"group": "poisson", "work": work, "server": TRITON}
        top = found.value("closed_loop_per_s", **theirs)
        ratio = found.value("rate_per_s", **theirs) / top if top else NONE
        what = f"Poisson rate with p99 ≤ 15 ms over closed-loop maximum, {work}, http"
        rate, base = (found.value(name, **own) for name in ("rate_per_s", "closed_loop_per_s"))
        made.append(Line(what, rate, 0.60, 0.80, ratio, f"{TRITON}'s own ratio", base))
    value = found.value
    own = {"group": "overload", "server": TESSERA}
    goodput, top = value("good_per_s", **own), value("closed_loop_per_s", **own)
    made.append(
        Line("twice the capacity offered, ensemble: goodput over maximum", goodput, 0.9, base=top)
    )
    p99, slo = value("p99_ms", **own), value("slo_ms", **own)
    made.append(Line("- p99 ms of the answered, SLO", p99, slo, higher_is_better=False))
    refused = value("refused_p99_ms", **own)
    made.append(Line("- p99 ms to a rejection", refused, NONE, 5.0, higher_is_better=False))
    return made


def _inside(found: Found) -> list[Line]:
    own = {"group": "inside", "work": "cnn", "c": "32"}
    made = []
    for name in ("dispatcher wake-ups", "worker wake-ups"):
        seen = found.value(name, **own)
        made.append(Line(f"one CNN, c=32: {name} per batch", seen, 1.0, higher_is_better=False))
    for name in ("dispatcher system calls", "worker system calls"):
        made.append(Line(f"- {name} per batch", found.value(name, **own), higher_is_better=False))
    copies = found.value("copies", **own)
    made.append(Line("- copies per tensor", copies, 2.0, higher_is_better=False))
    started = {"group": "start", "work": "cnn"}
    first, plain = found.value("first_answer_s", **started), found.value("plain_s", **started)
    what = "fork to first inference, CNN: s"
    made.append(Line(what, first, 0.2, 0.05, plain, "plain start", higher_is_better=False))
    return made


def _dispatchers(found: Found) -> list[Line]:
    made = []
    for wire in ("http", "grpc"):
        two, one = (
            {"group": "dispatchers", "servers": count, "protocol": wire} for count in ("2", "1")
        )
        value = found.value
        what = f"identity, {wire}, c=32 each: req/s of two servers on shared ports over one"
        made.append(
            Line(what, value("rate_per_s", **two), 1.8, 1.95, base=value("rate_per_s", **one))
        )
        cpu, base = value("cpu_us", **two), value("cpu_us", **one)
        made.append(Line("- CPU µs/request", cpu, base=base, higher_is_better=False))
    return made


def _gpu(found: Found) -> list[Line]:
    without = found.problem(group="gpu")
    absent = "no GPU found" if without.startswith("no GPU found") else ""
    own = {"group": "gpu", "work": "resnet50", "server": TESSERA}
    rates = [found.value("rate_per_s", **own, instances=count) for count in ("1", "2")]
    rate = max((rate for rate in rates if not math.isnan(rate)), default=NONE)
    what = "GPU, ResNet-50: Poisson rate with p99 ≤ 15 ms over the offline loop of CUDA graphs"
    made = [Line(what, rate, 0.61, 0.85, base=found.value("loop_per_s", **own), note=absent)]
    small = {"group": "gpu", "work": "resnet18", "batch": "4"}
    one = found.value("rate_per_s", **small, **{"in": "1 process"}, lanes="1")
    for where, words, must, aim in (
        ("1 process", "GPU, ResNet-18 at 4 rows: rows/s of 4 lanes over 1", 1.3, 1.5),
        ("4 processes", "- of 4 processes over 1 lane", NONE, NONE),
        ("4 processes, MPS", "- of 4 processes under MPS over 1 lane", NONE, NONE),
    ):
        several = found.value("rate_per_s", **small, **{"in": where}, lanes="4")
        note = absent or ("no MPS" if found.problem(group="gpu", **{"in": where}) else "")
        made.append(Line(words, several, must, aim, base=one, note=note))
    return made


def table(drawn: Sequence[Line]) -> Table:
    """One line per target."""
    shown = Table(title="The data plane beside its peers: medians; server on one core")
    shown.add_column("what")
    shown.add_column("Tessera", justify="right", no_wrap=True)
    shown.add_column("best peer")
    for name in ("loop or base", "ratio", "must", "aim"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for line in drawn:
        absent = "not run" if line.peer_name else ""
        peer = absent if math.isnan(line.peer) else f"{number(line.peer)} {line.peer_name}"
        shown.add_row(
            line.what,
            number(line.tessera),
            peer,
            number(line.base),
            number(line.ratio),
            number(line.must),
            number(line.aim),
            line.note or line.verdict,
        )
    return shown


def number(value: float) -> str:
    """Three significant digits or so; nothing for NaN."""
    if math.isnan(value):
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
