"""The allocation matrix: devices × members, an entry being a batch cap and a number of instances.

Problem: the search needs a state that is cheap to change in one place, that compares and hashes by content,
and that says nothing about which of several equal slices is meant, or else it would visit the same plan
many times. Approach: a row is the multiset of parts that one device is cut into and uses; each part (a
whole GPU, a MIG slice, a set of cores) holds cells, one per member. Exact start positions and cores are
given to the parts after the search (``settle.py``), because any legal multiset has them.

The matrix of Pochelu et al. (arXiv 2208.14049), whose entries are batch sizes, is the case of uncut devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera_core.gpu.devices import DeviceClass


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One non-zero entry: ``instances`` of a member on one part, batches of at most ``cap`` rows."""

    member: int
    """Index of the member's demand."""
    cap: int
    instances: int


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """A piece of a device and what runs in it; cells in the order of their members."""

    place: DeviceClass
    cells: tuple[Cell, ...]

    def of(self, member: int) -> Cell | None:
        """The cell of ``member``, None where it does not run here."""
        return next((cell for cell in self.cells if cell.member == member), None)

    def with_cell(self, cell: Cell) -> Part:
        """The part with ``cell`` added, or in place of the member's present one."""
        kept = (each for each in self.cells if each.member != cell.member)
        return Part(self.place, tuple(sorted((*kept, cell))))

    def without(self, member: int) -> Part:
        """The part without ``member``."""
        return Part(self.place, tuple(each for each in self.cells if each.member != member))


Row = tuple[Part, ...]
"""The used parts of one device, sorted; empty: the device is not used."""

Change = tuple[tuple[int, Row], ...]
"""New rows by device index: one for a change of one cell, two for a move."""


def row_of(parts: Iterable[Part]) -> Row:
    """The canonical row of ``parts``; parts without cells vanish."""
    return tuple(sorted(part for part in parts if part.cells))


def replace_part(row: Row, index: int, *parts: Part) -> Row:
    """``row`` with ``parts`` in place of the part at ``index``."""
    return row_of((*row[:index], *parts, *row[index + 1 :]))


@dataclass(frozen=True, slots=True)
class Matrix:
    """One row per device, in the problem's order of devices."""

    rows: tuple[Row, ...]

    @classmethod
    def empty(cls, devices: int) -> Matrix:
        """The matrix of ``devices`` unused devices."""
        return cls(((),) * devices)

    def after(self, change: Change) -> Matrix:
        """The matrix with the rows of ``change``."""
        rows = list(self.rows)
        for device, row in change:
            rows[device] = row
        return Matrix(tuple(rows))

    def devices_of(self, member: int) -> tuple[int, ...]:
        """Indices of the devices on which ``member`` runs."""
        return tuple(
            index
            for index, row in enumerate(self.rows)
            if any(part.of(member) is not None for part in row)
        )
