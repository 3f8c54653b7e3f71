"""What a board can be cut into, as an automaton: states are multisets of parts, an edge adds one part.

Problem: a planner asks millions of times whether a part still fits a board, and what a half-used board is
still worth. Approach: the multisets that are possible on one kind of board are few (about 200 on a
seven-slice GPU with all its profiles), so they are enumerated once. A state is possible when some packing, a
maximal multiset of parts that exist side by side, contains it; for MIG these come from the vendor's
placement table, hence every state has start positions. A processor's state is the number of cores in use.

Given a price for every class of part, the worth of a state is the most that its board can still earn:
``worth(start) - worth(state)`` is then what the parts in use really cost, waste included. A 3g beside a 3g
leaves a slice that nothing can use, so the second 3g costs more than its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

Packing = tuple[int, ...]
"""Number of parts by class, in the order of a kind's classes."""
NEVER = -1
"""No such edge."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """The automaton of one kind of board; state 0 is the unused board."""

    states: tuple[Packing, ...]
    after: tuple[tuple[int, ...], ...]
    """``after[state][class]``: the state with one more part of that class, or ``NEVER``."""
    order: tuple[int, ...]
    """States, fullest first: every edge leads to an earlier one."""
    mixes: tuple[tuple[float, ...], ...]
    """Counts by class whose convex combinations contain every state: the maximal packings, or for a
    processor as many sets of one size as would fill it."""

    @property
    def most_parts(self) -> int:
        """Parts on one board at most."""
        return max((ceil(sum(mix)) for mix in self.mixes), default=0)

    def worth(self, prices: Sequence[float]) -> tuple[float, ...]:
        """By state: the most that parts added to it bring at ``prices``, one per class."""
        worth = [0.0] * len(self.states)
        for state in self.order:
            worth[state] = max(
                (
                    prices[index] + worth[following]
                    for index, following in enumerate(self.after[state])
                    if following != NEVER
                ),
                default=0.0,
            )
        return tuple(worth)


@lru_cache(maxsize=256)
def shape_of(packings: tuple[Packing, ...]) -> Shape:
    """The automaton of everything inside one of ``packings``, all of equal length."""
    classes = len(packings[0]) if packings else 0
    start = (0,) * classes
    index = {start: 0}
    states = [start]
    after: list[tuple[int, ...]] = []
    for state in states:  # grows while it is walked
        edges = []
        for each in range(classes):
            grown = (*state[:each], state[each] + 1, *state[each + 1 :])
            if grown not in index:
                if not any(_inside(grown, packing) for packing in packings):
                    edges.append(NEVER)
                    continue
                index[grown] = len(states)
                states.append(grown)
            edges.append(index[grown])
        after.append(tuple(edges))
    full = tuple(
        s for s, edges in zip(states, after, strict=True) if all(e == NEVER for e in edges)
    )
    # Breadth first: a state comes before everything that it grows into.
    return Shape(tuple(states), tuple(after), tuple(range(len(states) - 1, -1, -1)), full)


def _inside(state: Packing, packing: Packing) -> bool:
    return all(have <= most for have, most in zip(state, packing, strict=True))


@lru_cache(maxsize=256)
def shape_of_cores(sizes: tuple[int, ...], cores: int) -> Shape:
    """The automaton of a processor with ``cores`` to divide into sets of ``sizes``.

    Sets of one size are enough to know a state by, so states that use equally many cores are one.
    """
    after = tuple(
        tuple(used + size if used + size <= cores else NEVER for size in sizes)
        for used in range(cores + 1)
    )
    states = tuple((used,) for used in range(cores + 1))
    mixes = tuple(
        tuple(cores / size if other == size else 0.0 for other in sizes) for size in sizes
    )
    return Shape(states, after, tuple(range(cores, -1, -1)), mixes)
