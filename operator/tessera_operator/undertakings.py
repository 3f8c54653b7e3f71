"""The PlacementPlans of the cluster: the one under way, one that is proposed, and what is kept of those before.

A plan is written before anything of it is done, and that one of its cuts begins before anything makes way for it. Where
writing fails the round ends, and the next one starts from the present again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from tessera_core.api import RuntimeNode, RuntimePool, SpecInvalid
from tessera_core.api.placementplan import PlacementPlan, PlacementPlanStatus, Recut
from tessera_core.gpu.geometry import Geometry
from tessera_operator import plans
from tessera_operator.cuts import Key, cuts_of, devices_of, failed, unfinished
from tessera_operator.decide import Decision
from tessera_operator.instants import to_text
from tessera_operator.kinds import Document
from tessera_operator.recutting import Rules, Waiting, Waits, reported, rules_of
from tessera_operator.rollout import Rollout, begin, proceed
from tessera_operator.transactions import Failure, failures
from tessera_operator.write import Writer

REMEMBERED_S = 600.0
"""For how long a GPU counts as one that can be cut although no partitioner says anything of it: one that is replaced must
not look like other facts."""


class Undertakings:
    """Not thread-safe."""

    def __init__(
        self, writer: Writer, write_status: Callable[[str, PlacementPlanStatus], bool], epoch: int
    ) -> None:
        self._writer, self._write_status, self._epoch = writer, write_status, epoch
        self._plans: dict[str, PlacementPlan] = {}
        self._reported: dict[Key, float] = {}
        self._proposal: Rollout | None = None
        self.rollout: Rollout | None = None
        self.afresh = False
        """Whether the next decision is to be made although no fact has changed."""

    def take(self, name: str, document: Document | None) -> None:
        """Take over a plan that is new, changed or, with None, gone."""
        self._plans.pop(name, None)
        if document is not None:
            try:
                self._plans[name] = PlacementPlan.from_dict(document, strict=False)
            except SpecInvalid:
                pass

    def rules(
        self,
        pools: Sequence[RuntimePool],
        nodes: Sequence[RuntimeNode],
        now_s: float,
        now: datetime,
    ) -> Rules:
        """What holds for cuts now."""
        self._reported.update(dict.fromkeys(reported(nodes), now_s))
        self._reported = {
            key: at for key, at in self._reported.items() if now_s - at < REMEMBERED_S
        }
        return rules_of(pools, nodes, [*self._plans.values()], self._reported.keys(), now)

    def keep(self, decision: Decision, nodes: Sequence[RuntimeNode], rules: Rules) -> bool:
        """Have the objects of the plan under way and of the proposal; False where one could not be written."""
        if decision.is_new or (self.rollout is None and self.afresh):
            self.afresh = False
            rollout = begin(decision, self._epoch, nodes, rules)
            before = self.rollout
            if rollout is None:
                self.rollout = None
            elif before is None or rollout.name != before.name:
                since = before.since if before is not None else {}
                cuts = (*self._failed(rollout.name), *rollout.cuts)
                self.rollout = replace(rollout, since=since, cuts=cuts)
            self._proposal = (
                begin(decision, self._epoch, nodes, rules, decision.proposal)
                if decision.proposal is not None
                else None
            )
        for one in (self.rollout, self._proposal):
            if one is None or one.name in self._plans:
                continue
            document = plans.to_object(one.spec).to_dict()
            document.pop("status", None)
            if not self._writer.put(document):
                self.rollout, self.afresh = None, True
                return False
            self._plans[one.name] = plans.to_object(one.spec)
        return True

    def proceed(
        self,
        nodes: Mapping[str, RuntimeNode],
        lost: Collection[str],
        routed: Callable[[str], bool],
        rules: Rules,
        now_s: float,
    ) -> bool:
        """See how far the plan is, and what may be done next; False where nobody may be told anything this round."""
        before = self.rollout
        if before is None:
            return True
        rollout = proceed(before, nodes, lost, routed, rules, now_s)
        begun = [each for each in rollout.cuts if each not in before.cuts]
        if begun and not self._record(rollout, self._status(rollout, rules)):
            return False
        self.rollout = rollout
        found = failures(
            rollout.spec.steps, rollout.done, rollout.released, rollout.since, nodes, rules, now_s
        )
        if found:
            if self._roll_back(rollout, found, rules):
                self._supersede(rollout, nodes.values(), rules)
                self.rollout, self.afresh = None, True
            return False
        # What waits for longer than for its turn is not waited for: another plan serves in the meantime.
        self.afresh |= any(each.why is not Waits.BUDGET for each in rollout.waiting)
        return True

    @property
    def coming(self) -> Mapping[Key, Geometry]:
        """What GPUs are to be cut into, also by the plan that is only proposed."""
        both = (each for each in (self._proposal, self.rollout) if each is not None)
        return {key: cut for each in both for key, cut in cuts_of(each.spec.steps).items()}

    @property
    def cutting(self) -> frozenset[str]:
        """Nodes of which a GPU is being cut."""
        cuts = self.rollout.cuts if self.rollout is not None else ()
        return frozenset(each.node for each in cuts if each.ended_at is None)

    def finish(self, rules: Rules, nodes: Sequence[RuntimeNode]) -> None:
        """Write how far plans are, and delete those that nobody asks for any more."""
        rollout, proposal = self.rollout, self._proposal
        written = rollout is None or self._record(rollout, self._status(rollout, rules))
        if proposal is not None and (rollout is None or proposal.name != rollout.name):
            self._record(proposal, self._proposed(proposal, rules))
        if written:
            self._supersede(rollout, nodes, rules)
        if rollout is not None and rollout.is_done:
            # What is left, or what only now can be tidied up, is the next plan's.
            self.rollout, self.afresh = None, True
        current = {each.name for each in (rollout, proposal) if each is not None}
        for name in plans.obsolete(self._plans.values(), current, rules.now):
            self._writer.remove(("PlacementPlan", "", name))

    def _supersede(
        self, rollout: Rollout | None, nodes: Iterable[RuntimeNode], rules: Rules
    ) -> None:
        """Say of all plans but ``rollout`` and the proposal that they are over, and of their cuts which go on in it."""
        current = {each.name for each in (rollout, self._proposal) if each is not None}
        mine = {device for _, device in cuts_of(rollout.spec.steps)} if rollout is not None else ()
        devices, now = devices_of(nodes), to_text(rules.now)
        for name, plan in sorted(self._plans.items()):
            if name not in current:
                left = {device for _, device in unfinished(plan, devices)}.difference(mine)
                status = plans.carried_on(plan.status, left, now)
                if plans.is_open(plan):
                    status = plans.superseded(status, now)
                self._write(plan, status)

    def _roll_back(self, rollout: Rollout, found: Sequence[Failure], rules: Rules) -> bool:
        """Give up the plan: the next one starts from the present, with the GPUs that failed as they were before."""
        plan = self._plans[rollout.name]
        problems = {each.key: f"{each.reason}: {each.message}" for each in found}
        cuts = tuple(
            failed(cut, problems[cut.node, cut.device], rules.now)
            if (cut.node, cut.device) in problems
            else cut
            for cut in rollout.cuts
        )
        words = "; ".join(f"{node}/{device}: {why}" for (node, device), why in problems.items())
        status = plans.rolled_back(plan.status, cuts, found[0].reason, words, to_text(rules.now))
        return self._write(plan, status)

    def _status(self, rollout: Rollout, rules: Rules) -> PlacementPlanStatus:
        return plans.progress(
            self._plans[rollout.name].status,
            rollout.spec.steps,
            rollout.done,
            rollout.begun,
            approved=self._is_approved(rollout),
            now=to_text(rules.now),
            cuts=rollout.cuts,
            waiting=_words(rollout.waiting),
        )

    def _proposed(self, proposal: Rollout, rules: Rules) -> PlacementPlanStatus:
        goals = cuts_of(proposal.spec.steps)
        found = [rules.waiting(key, goal) for key, goal in goals.items()]
        return plans.progress(
            self._plans[proposal.name].status,
            proposal.spec.steps,
            frozenset(),
            (),
            approved=self._is_approved(proposal),
            now=to_text(rules.now),
            cuts=self._failed(proposal.name),
            waiting=_words([each for each in found if each is not None]),
        )

    def _failed(self, name: str) -> tuple[Recut, ...]:
        """Cuts that failed when the same plan was tried before: they still count."""
        known = self._plans.get(name)
        return tuple(each for each in known.status.cuts if each.problem) if known else ()

    def _is_approved(self, rollout: Rollout) -> bool:
        return rollout.spec.approved or self._plans[rollout.name].spec.approved

    def _record(self, rollout: Rollout, status: PlacementPlanStatus) -> bool:
        return self._write(self._plans[rollout.name], status)

    def _write(self, plan: PlacementPlan, status: PlacementPlanStatus) -> bool:
        """Have ``status`` in the object; False where it could not be written."""
        name = plan.metadata.name
        if status == plan.status:
            return True
        if not self._write_status(name, status):
            return False
        self._plans[name] = replace(plan, status=status)
        return True


def _words(waiting: Sequence[Waiting]) -> tuple[str, str] | None:
    """Reason and message of the condition; None: nothing waits."""
    if not waiting:
        return None
    return waiting[0].why.value, "; ".join(map(str, waiting))[: plans.MOST_MESSAGE]
