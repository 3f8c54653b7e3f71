"""The cheapest parts that together carry a rate: a small integer covering problem, solved exactly.

Depth first over the items, best rate per price first; a branch ends when even the fraction of the next item
that would do costs more than the best found. Items are few (the classes of one kind of board), so a handful
of steps is enough; the number of steps is bounded all the same, and then the best so far is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

_MOST_STEPS = 4000

Item = tuple[float, int]
"""(price, rate)"""


def cheapest(items: Sequence[Item], need: int) -> float:
    """A lower bound on the price of items that add up to ``need``; the exact price unless steps run out."""
    ordered = _ordered(items)
    if not ordered or need <= 0:
        return 0.0
    price, rate, _ = ordered[0]
    found, exact = _search(ordered, need, inf, 10**9, 1)
    return found[0][0] if exact and found else need * price / rate


def covers(
    items: Sequence[Item], need: int, most: int, below: float = inf, keep: int = 1
) -> list[tuple[float, tuple[int, ...]]]:
    """Up to ``keep`` cheapest covers as (price, count per item), cheapest first.

    Covers have at most ``most`` items and cost less than ``below``; none when that cannot be.
    """
    found, _ = _search(_ordered(items), need, below, most, keep)
    result = []
    for price, counts in found:
        by_item = [0] * len(items)
        for position, count in counts:
            by_item[position] = count
        result.append((price, tuple(by_item)))
    return result


def _ordered(items: Sequence[Item]) -> list[tuple[float, int, int]]:
    """(price, rate, position) of items that carry something, the best rate per price first."""
    usable = [(price, rate, i) for i, (price, rate) in enumerate(items) if rate > 0]
    return sorted(usable, key=lambda item: (item[0] / item[1], -item[1], item[2]))


_Counts = tuple[tuple[int, int], ...]


def _search(
    ordered: Sequence[tuple[float, int, int]], need: int, below: float, most: int, keep: int
) -> tuple[list[tuple[float, _Counts]], bool]:
    """The cheapest covers, and whether the search was complete."""
    best: list[tuple[float, _Counts]] = []
    steps = 0

    def limit() -> float:
        return best[-1][0] if len(best) >= keep else below

    def walk(index: int, left: int, spent: float, used: int, counts: _Counts) -> None:
        nonlocal steps
        if left <= 0:
            best.append((spent, counts))
            best.sort()
            del best[keep:]
            return
        steps += 1
        if index == len(ordered) or steps > _MOST_STEPS:
            return
        price, rate, position = ordered[index]
        fewest = 0
        # The last item has to do it all.
        enough = ceil(left / rate)
        if index == len(ordered) - 1:
            fewest = enough
        for count in range(min(enough, most - used), fewest - 1, -1):
            rest = left - count * rate
            cost = spent + count * price
            if rest > 0:
                following = ordered[index + 1]
                if cost + rest * following[0] / following[1] >= limit():
                    # Fewer of this, the better item, and more of worse ones costs no less.
                    return
            elif cost >= limit():
                continue
            more = ((position, count),) if count else ()
            walk(index + 1, rest, cost, used + count, counts + more)

    walk(0, need, 0.0, 0, ())
    return best, steps <= _MOST_STEPS
