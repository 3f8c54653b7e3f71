"""What the demo prints while the load runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections import deque
from types import TracebackType

from examples.digits.load import Tick
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tessera_runtime.agent.status import ServiceStatus

_ROWS = 16
_LINE_EVERY = 4
"""Ticks of half a second per plain line."""

COLUMNS = (
    ("second", "right"),
    ("rate /s", "right"),
    ("p50 ms", "right"),
    ("p99 / SLO ms", "right"),
    ("predicted p99", "right"),
    ("batch (cap)", "left"),
    ("instances", "left"),
    ("in SLO", "right"),
    ("failed", "right"),
    ("late", "right"),
)


class Show:
    """A context manager; :meth:`tick` is called as the load goes on."""

    def __init__(self, console: Console, title: str, slo_ms: float) -> None:
        self._console = console
        self._title = title
        self._slo_ms = slo_ms
        self._recent: deque[tuple[str, ...]] = deque(maxlen=_ROWS)
        self._ticks = 0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Show:
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(self._title)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tick(self, tick: Tick) -> None:
        row = cells(tick, self._slo_ms)
        if self._live is not None:
            self._recent.append(row)
            self._live.update(self._table(), refresh=True)
        elif self._ticks % _LINE_EVERY == _LINE_EVERY - 1:
            named = zip(COLUMNS, row, strict=True)
            line = "  ".join(f"{name} {value}" for (name, _), value in named)
            self._console.print(line, highlight=False, soft_wrap=True)
        self._ticks += 1

    def _table(self) -> Table:
        table = Table(title=self._title)
        for name, justify in COLUMNS:
            table.add_column(name, justify="right" if justify == "right" else "left")
        for row in self._recent:
            table.add_row(*row)
        return table


def cells(tick: Tick, slo_ms: float) -> tuple[str, ...]:
    """The columns of one tick, as text."""
    status = tick.status
    return (
        f"{tick.at_s:.1f}",
        f"{tick.rate_per_s:.0f}",
        number(tick.p50_ms),
        f"{number(tick.p99_ms)} / {slo_ms:g}",
        number(status.predicted_p99_ms if status is not None else None),
        _batches(status),
        _instances(status),
        _attainment(status),
        str(tick.failed),
        str(tick.late),
    )


def number(value: float | None, form: str = ".1f") -> str:
    """The number, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def _batches(status: ServiceStatus | None) -> str:
    members = status.members if status is not None else ()
    return ", ".join(f"{number(m.mean_batch)} ({m.batch_cap})" for m in members) or "-"


def _instances(status: ServiceStatus | None) -> str:
    members = status.members if status is not None else ()
    return "+".join(str(member.instances) for member in members) or "-"


def _attainment(status: ServiceStatus | None) -> str:
    return number(status.attainment if status is not None else None, ".2%")
