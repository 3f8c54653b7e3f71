"""First placement: worst-fit-decreasing by memory.

Members are taken from the largest to the smallest memory and each gets the open place with the most memory
left; another board is opened when none will do. That is the classic rule of vector packing, and the first
stage of Pochelu et al. (arXiv 2208.14049). Two things are added: a place will do only when the queue model
says that nobody in it loses what they have, and a place that carries all that a member misses goes before
one that does not.

Everything that can be served gets a first cell here; how much is served is left to the greedy stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tessera_core.plan.matrix import Matrix, Part
from tessera_core.plan.moves import Offer, appeal, own_parts, shared_parts
from tessera_core.plan.problem import Problem
from tessera_core.plan.score import Scorer, Standing


def worst_fit(problem: Problem, scorer: Scorer) -> Standing:
    """Every member on its fewest parts, as far as there is room; members without room have no cell.

    A member of which only some of the parts found room keeps those.
    """
    standing = scorer.start(Matrix.empty(len(problem.boards)))
    for member in sorted(range(len(problem.demands)), key=lambda m: (-_size(problem, m), m)):
        for _ in range(problem.demands[member].min_parts):
            placed = _place(problem, scorer, standing, member)
            if placed is None:
                break
            standing = placed
    return standing


def _size(problem: Problem, member: int) -> int:
    """Least memory that the member needs anywhere, MiB."""
    predictor = problem.predictor
    kinds = sorted({board.kind for board in problem.boards}, key=str)
    return min(
        (
            predictor.memory_mib(Part(place, (cell,)))
            for kind in kinds
            for place in problem.options(member, kind)
            if (cell := predictor.best(member, place)) is not None
        ),
        default=0,
    )


def _place(problem: Problem, scorer: Scorer, standing: Standing, member: int) -> Standing | None:
    """The standing with one more part for ``member``, None without room."""
    missing = scorer.missing(standing, member)

    def open_places() -> Iterable[Offer]:
        offers = [
            *own_parts(problem, standing, member, missing, used=True),
            *shared_parts(problem, scorer, standing, member),
        ]
        return sorted(offers, key=lambda offer: (-_free(problem, offer), offer.board))

    def fresh_places() -> Iterable[Offer]:
        offers = own_parts(problem, standing, member, missing, used=False)
        return sorted(
            offers,
            key=lambda offer: (
                appeal(
                    problem, member, missing, problem.boards[offer.board].kind, offer.part.place
                ),
                -_free(problem, offer),
                offer.board,
            ),
        )

    for offers, harmless in (
        (open_places, True),
        (fresh_places, False),
        (open_places, False),
    ):
        for tried in _try(problem, scorer, standing, member, offers()):
            if not harmless or _harms_nobody(problem, scorer, standing, tried, member):
                return tried
    return None


def _try(
    problem: Problem, scorer: Scorer, standing: Standing, member: int, offers: Iterable[Offer]
) -> Iterator[Standing]:
    """The standings after those of ``offers`` that are allowed, on a further node while some are missing."""
    demand = problem.demands[member]
    nodes = scorer.nodes(standing.matrix, member)
    for offer in offers:
        if len(nodes) < demand.min_nodes and problem.boards[offer.board].node in nodes:
            continue
        change = ((offer.board, offer.row),)
        if problem.allows(standing.matrix, change):
            yield scorer.after(standing, change)


def _harms_nobody(
    problem: Problem, scorer: Scorer, before: Standing, after: Standing, member: int
) -> bool:
    """Whether ``member`` lacks no rate any more and nobody else has a smaller share than before."""
    return scorer.missing(after, member) == 0 and all(
        scorer.share(after, other) >= scorer.share(before, other)
        for other in range(len(problem.demands))
        if other != member
    )


def _free(problem: Problem, offer: Offer) -> int:
    return problem.free_mib(offer.board, offer.row, offer.part)
