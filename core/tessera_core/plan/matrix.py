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
from typing import NamedTuple


class Cell(NamedTuple):
    """One non-zero entry: ``instances`` of a member on one part, batches of at most ``cap`` rows."""

    member: int
    """Index of the member's demand."""
    cap: int
    instances: int


class Part(NamedTuple):
    """A piece of a device and what runs in it; cells in the order of their members."""

    place: int
    """Index of the device class in ``Problem.places``."""
    cells: tuple[Cell, ...]

    def of(self, member: int) -> Cell | None:
        """The cell of ``member``, None where it does not run here."""
        for cell in self.cells:
            if cell[0] == member:
                return cell
        return None

    def with_cell(self, cell: Cell) -> Part:
        """The part with ``cell`` added, or in place of the member's present one."""
        kept = (each for each in self.cells if each.member != cell.member)
        return Part(self.place, tuple(sorted((*kept, cell))))

    def without(self, member: int) -> Part:
        """The part without ``member``."""
        return Part(self.place, tuple(each for each in self.cells if each.member != member))


Row = tuple[Part, ...]
"""The used parts of one device, sorted; empty: the device is not used."""

Change = dict[int, Row]
"""New rows by device index."""


def row_of(parts: Iterable[Part]) -> Row:
    """The canonical row of ``parts``; parts without cells vanish."""
    return tuple(sorted(part for part in parts if part.cells))


def replace_part(row: Row, index: int, *parts: Part) -> Row:
    """``row`` with ``parts`` in place of the part at ``index``."""
    return row_of((*row[:index], *parts, *row[index + 1 :]))
