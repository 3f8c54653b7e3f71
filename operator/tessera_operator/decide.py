"""From the objects to a plan: which version of which service, at which rate, on which nodes.

Keeps what makes the next decision cheap and steady: decoded objects, the planner's memory, what traffic there was.
It plans again only when a fact changed that a plan depends on.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera_core.api import (
    FieldError,
    Member,
    ModelProfile,
    ModelService,
    ModelServiceStatus,
    ObjectMeta,
    RuntimeNode,
)
from tessera_core.api.admission import admission
from tessera_core.api.modelservice import MemberStatus
from tessera_core.plan.decision import Plan
from tessera_core.plan.planner import Planner
from tessera_core.plan.state import Budget, ClusterState
from tessera_operator.choosing import (
    allowed,
    as_promised,
    from_present,
    made_whole,
    new_cuts,
    pays,
    silences,
    uncut,
)
from tessera_operator.config import Config, refused_sources
from tessera_operator.lacking import unseen
from tessera_operator.plans import idle_facts
from tessera_operator.profiling import Trust, Wanted, tenants
from tessera_operator.recutting import NO_CUTS, Rules
from tessera_operator.scouting import Scouting, scout, with_cuts
from tessera_operator.traffic import Traffic
from tessera_operator.variants import NO_USES, Uses, as_used, names
from tessera_operator.versions import (
    Version,
    before,
    choose,
    latest,
    pinned,
    profile_names,
)
from tessera_operator.world import World

_MOST_WHOLE = 4
"""Plans that are tried until one leaves MIG on where it is."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to run, and what is not and why."""

    state: ClusterState
    plan: Plan
    versions: Mapping[str, Version]
    """By service, of all that are planned."""
    newest: Mapping[str, Version]
    """By service, as the objects say; what is measured next."""
    errors: Mapping[str, tuple[FieldError, ...]]
    """By service, why its present spec cannot be planned."""
    is_new: bool
    """Whether the facts differ from those of the decision before."""
    proposal: Plan | None = None
    """A better plan, whose cuts have to wait; None: there is none."""
    scouting: Scouting = field(default_factory=Scouting)
    """What of its cuts is for measuring."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What was decided last."""

    facts: ClusterState
    plan: Plan
    unfit: frozenset[str]
    """Services whose newest version fitted nowhere."""
    proposal: Plan | None
    scouting: Scouting


class Decider:
    """One planning loop's memory. Not thread-safe."""

    def __init__(self, config: Config, world: World, traffic: Traffic) -> None:
        self._config, self._world, self._traffic = config, world, traffic
        self._planner = Planner()
        self._uncut = Planner()
        """Where a plan that cuts GPUs is compared with one that does not."""
        self._budget = Budget()
        self._shown: dict[str, ModelService] = {}
        self._last: _Made | None = None
        self._rules = NO_CUTS
        self._names: dict[tuple[str, str, str], str] = {}
        """By (service, member, digest), of models that are in force in a variant."""
        self._more: tuple[ModelProfile, ...] = ()
        """What was measured, under these names."""

    def decide(
        self,
        now_s: float,
        lost: Collection[str],
        *,
        afresh: bool,
        rules: Rules = NO_CUTS,
        given_up: Collection[Wanted] = (),
        settled: bool = True,
        uses: Uses = NO_USES,
    ) -> Decision:
        """The plan for the present facts. ``afresh``: also where they are those of the plan before. ``rules``: for cuts.
        ``given_up``: what is not worth a cut to be measured, as that failed too often. ``settled``: whether no plan is under
        way, which what is to be measured waits for. ``uses``: variants of models that are in force.
        """
        self._rules = rules
        world = self._world
        self._names = names(uses)
        self._more = as_used(uses, world.profiles, world.tuned)
        named, running = profile_names(world.profiles), pinned(world.nodes)
        measured = {each.spec.model_digest for each in world.profiles if each.status.rows}
        errors: dict[str, tuple[FieldError, ...]] = {}
        newest: dict[str, Version] = {}
        versions: dict[str, Version] = {}
        fallback: dict[str, Version] = {}
        for service in world.services:
            if service.metadata.deletion_timestamp is not None:
                continue
            name = service.served_name
            new, old = latest(service, named), None
            if (served := running.get(name)) is not None:
                old = fallback[name] = before(service, served)
            found = self._errors(service)
            if found:
                errors[name] = found
                if old is not None:
                    versions[name] = old
                continue
            newest[name] = new
            versions[name] = choose(new, old, measured)
        state, rejected = self._observe(versions, now_s, lost)
        errors.update(rejected)
        alone = frozenset(rejected.keys() & fallback.keys())
        if alone:
            # What runs goes on, though its new version, or now itself, contradicts other objects.
            versions.update((name, fallback[name]) for name in alone)
            state, _ = self._observe(versions, now_s, lost, alone)
        facts = idle_facts(state)
        nodes = [node for node in world.nodes if node.metadata.name not in lost]
        trust = self._trust({**versions, **newest}, nodes)
        lacks = unseen(newest.values(), world.profiles, nodes, world.pools, trust, given_up, rules)
        last = self._last
        is_new = (
            afresh
            or last is None
            or last.facts != facts
            or (settled and last.scouting.unseen != lacks)
            or self._may_begin(last.proposal)
            or last.scouting.may_begin(rules)
        )
        if is_new or last is None:
            plan, unfit, proposal = self._plan(state, versions, fallback, now_s, lost, alone)
            waits = proposal is not None
            trust = self._trust(trust.versions, nodes, plan)
            scouting = scout(lacks, plan, state, nodes, trust, rules, waits=waits)
            plan, proposal = _scouted(plan, proposal, scouting)
            last = self._last = _Made(facts, plan, unfit, proposal, scouting)
        unfit = last.unfit & fallback.keys() & versions.keys()
        if unfit:
            versions.update((name, fallback[name]) for name in unfit)
            state, _ = self._observe(versions, now_s, lost, alone)
        self._shown = {name: self._shown[name] for name in versions}
        return Decision(
            state, last.plan, versions, newest, errors, is_new, last.proposal, last.scouting
        )

    def _plan(
        self,
        state: ClusterState,
        versions: Mapping[str, Version],
        fallback: Mapping[str, Version],
        now_s: float,
        lost: Collection[str],
        alone: Collection[str],
    ) -> tuple[Plan, frozenset[str], Plan | None]:
        """The plan; the services whose new version fits nowhere while an older one runs, which goes on; and a better
        plan whose cuts have to wait.
        """
        plan, proposal = self._planned(state)
        unfit = frozenset(
            service
            for service, _, _ in plan.refused
            if service in fallback and versions[service].generation != fallback[service].generation
        )
        if unfit:
            refusals = [each for each in plan.refused if each[0] in unfit]
            kept = {name: fallback[name] if name in unfit else versions[name] for name in versions}
            state, _ = self._observe(kept, now_s, lost, alone)
            plan, proposal = self._planned(state)
            others = [each for each in plan.refused if each[0] not in unfit]
            plan = replace(
                plan, refused=tuple(sorted((*refusals, *others), key=lambda each: each[:2]))
            )
        if self._last is None:
            gc.freeze()  # what stays for good need not be looked at again and again
        return plan, unfit, proposal

    def _planned(self, state: ClusterState) -> tuple[Plan, Plan | None]:
        """What to carry out now, and what is better but has to wait."""
        rules = self._rules
        # What is still to come of a transaction is given up where it would silence somebody by now.
        for each in (rules, rules.of_begun):
            plan, proposal = self._best(state, each)
            if not silences(plan, state, each):
                return plan, proposal
        return self._kept(state, rules.of_begun), None

    def _best(self, state: ClusterState, rules: Rules) -> tuple[Plan, Plan | None]:
        """GPUs are only cut anew where that pays. Until such a cut may begin, the best plan without it is carried out: a
        service must not wait for a person, or for a night, where it could be served in the meantime.
        """
        promised = rules.promised
        facts, cuttable = as_promised(state, rules), rules.cuttable
        plan = self._planner.plan(facts, self._budget)
        for _ in range(_MOST_WHOLE):
            if not (whole := made_whole(plan, facts)):
                break
            cuttable -= whole
            some = allowed(facts, cuttable - promised.keys())
            plan = self._planner.plan(some, self._budget)
        found = from_present(plan, state, promised)
        cuts = new_cuts(plan, promised)
        if not cuts:
            return found, None
        kept = self._kept(state, rules)
        nodes = {node for node, _ in cuts}
        if made_whole(plan, facts) or not pays(found, kept, rules, nodes):
            return kept, None
        return (found, None) if self._may_begin(found) else (kept, found)

    def _kept(self, state: ClusterState, rules: Rules) -> Plan:
        """The best plan that cuts nothing but what is promised."""
        plan = self._uncut.plan(uncut(as_promised(state, rules)), self._budget)
        return from_present(plan, state, rules.promised)

    def _may_begin(self, plan: Plan | None) -> bool:
        """Whether the cuts of ``plan`` need not wait; None: there are none to begin."""
        rules = self._rules
        return plan is not None and not any(
            rules.waiting(key, geometry) for key, geometry in new_cuts(plan, rules.promised).items()
        )

    def _trust(
        self,
        versions: Mapping[str, Version],
        nodes: Sequence[RuntimeNode],
        plan: Plan | None = None,
    ) -> Trust:
        """Who may be measured where, beside what is told and, with ``plan``, what is planned."""
        pools = {pool.metadata.name: pool for pool in self._world.pools}
        return Trust(versions, pools, tenants(nodes, plan.assignments if plan is not None else ()))

    def _errors(self, service: ModelService) -> tuple[FieldError, ...]:
        key = "ModelService", service.metadata.namespace, service.metadata.name
        undecoded = self._world.undecoded.get(key)
        if undecoded is not None:
            return tuple(undecoded.errors)
        return (
            *admission(service.spec, local=False, allow_code=True),
            *refused_sources(service.spec, service.metadata.namespace, self._config),
        )

    def _observe(
        self,
        versions: Mapping[str, Version],
        now_s: float,
        lost: Collection[str],
        alone: Collection[str] = (),
    ) -> tuple[ClusterState, Mapping[str, tuple[FieldError, ...]]]:
        """The facts, and by service why it is none of them. ``alone``: services whose references to other objects
        are left out.
        """
        shown = [self._show(each, now_s, name in alone) for name, each in versions.items()]
        policy = self._config.policy
        observed = self._world.observe(policy, self._budget, shown, lost, self._more)
        rejected = {
            f"{namespace}.{name}": tuple(invalid.errors)
            for (kind, namespace, name), invalid in observed.rejected.items()
            if kind == "ModelService"
        }
        return allowed(observed.state, self._rules.cuttable), rejected

    def _show(self, version: Version, now_s: float, alone: bool) -> ModelService:
        """The service as the planner sees it, the same value as before where nothing changed for it."""
        service, metadata = version.service, version.service.metadata
        spec, rate = service.spec, self._traffic.planned_rate(service, now_s)
        spec = replace(spec, traffic=replace(spec.traffic, requests_per_second=rate))
        if alone:
            plain = tuple(replace(member, profile_ref=None) for member in spec.members)
            spec = replace(spec, members=plain, priority_class_name=None)
        known = {
            name: self._names.get((version.name, name, digest), digest)
            for name, digest in version.digests.items()
        }
        if known != version.digests:
            spec = replace(
                spec, members=tuple(_nameless(each, version, known) for each in spec.members)
            )
        members = tuple(
            MemberStatus(member.name, known.get(member.name), member.model.uri)
            for member in spec.placed
        )
        found = ModelService(
            metadata=ObjectMeta(name=metadata.name, namespace=metadata.namespace),
            spec=spec,
            status=ModelServiceStatus(members=members),
        )
        before = self._shown.get(version.name)
        if before == found:
            return before
        self._shown[version.name] = found
        return found


def _nameless(member: Member, version: Version, known: Mapping[str, str]) -> Member:
    """``member`` without the digest that its document states, where plans know the model by another name."""
    if known.get(member.name) == version.digests.get(member.name):
        return member
    return replace(member, model=replace(member.model, digest=None), profile_ref=None)


def _scouted(plan: Plan, proposal: Plan | None, scouting: Scouting) -> tuple[Plan, Plan | None]:
    """``plan`` and ``proposal`` with what is cut for measuring. Cuts that have to wait are proposed as all others are."""
    if scouting.begun:
        return with_cuts(plan, scouting.begun), proposal
    if scouting.put_off:
        return plan, with_cuts(plan, scouting.put_off)
    return plan, proposal


def capacity(plan: Plan) -> dict[tuple[str, str, str], float]:
    """Rows per second by (node, service, member)."""
    found: dict[tuple[str, str, str], float] = {}
    for each in plan.assignments:
        key = each.node, each.service, each.member
        found[key] = found.get(key, 0.0) + each.rate
    return found
