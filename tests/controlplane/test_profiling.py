"""Measuring: every model on every kind of place where it may run, each once, and one failure stops no other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import A100, cluster, digest, gpu_place
from support.clusters import measured as measurement
from support.memory_cluster import MemoryCluster
from support.objects import cpu, gpu, instance, node, pool, seen, served, service
from tessera_core.api import ModelProfile, ModelService, RuntimeNode
from tessera_core.api.measurements import ProfileResult, ProfilingTask
from tessera_core.api.runtimenode import MigMode, SliceStatus
from tessera_core.api.stages import STAGE
from tessera_core.perf import ProfileRow
from tessera_core.plan import plan, state_to_dict
from tessera_operator.decide import Decision
from tessera_operator.kinds import Document, Key
from tessera_operator.measuring import Measuring
from tessera_operator.profiling import Spot, assign, missing, spots, to_profile
from tessera_operator.versions import Version, latest
from tessera_operator.world import World
from tessera_operator.write import Writer

FULL = (A100, "full")
ONE, SMALL = ("cpu", "cpu-1"), (A100, "1g.10gb")


def cores(name: str = "c0", count: int = 4, **rest: Any) -> RuntimeNode:
    return node(name, cpu(), cores=count, **rest)


def board(name: str = "n0", *slices: str, copies: int = 0, **rest: Any) -> RuntimeNode:
    """A node with one A100, cut into ``slices``; some of whose orders are ``copies``."""
    found = tuple(SliceStatus(f"MIG-{i}", each, i) for i, each in enumerate(slices))
    mode = MigMode.ENABLED if slices else MigMode.DISABLED
    runs = [seen(instance(f"vision.x{index}")) for index in range(copies)]
    device = gpu(f"GPU-{name}", *runs, mig_mode=mode, slices=found)
    return node(name, device, cpu(), cores=8, **rest)


def places(of: RuntimeNode, cpu_slices: Sequence[int] = (1,)) -> list[tuple[str, str]]:
    return [each.place for each in spots(of, cpu_slices)]


def test_a_whole_board_is_one_place_and_its_node_offers_no_cores() -> None:
    assert spots(board(), (1,)) == (Spot("GPU-n0", "full", FULL),)


def test_a_board_that_is_cut_offers_each_kind_of_slice_once() -> None:
    found = spots(board("n0", "1g.10gb", "1g.10gb", "2g.20gb"), (1,))
    assert found == (
        Spot("GPU-n0", "1g.10gb@0", SMALL),
        Spot("GPU-n0", "2g.20gb@2", (A100, "2g.20gb")),
    )


def test_cores_are_measured_at_the_end_where_nothing_else_runs() -> None:
    assert spots(cores(), (1, 2, 8)) == (
        Spot("cpu", "cpu-1@3", ONE),
        Spot("cpu", "cpu-2@2", ("cpu", "cpu-2")),
    )


def test_preprocessing_is_measured_on_cores_also_beside_a_gpu_and_members_there_are_not() -> None:
    of_images = service("s", "a", preprocess={"image": {"size": [8, 8]}})
    assert lacking(of_images, [board()]) == [("a", FULL), (STAGE, ONE)]
    assert lacking(of_images, [cores()]) == [("a", ONE), (STAGE, ONE)]
    tasks = assign([("vision.s", STAGE, ONE)], [board()], {"n0"}, {}, 0.0, (1,))
    assert tasks["n0"] == (ProfilingTask("vision.s", STAGE, "cpu", "cpu-1@7"),)


def on(device: str) -> ModelService:
    """Of images that are decoded on ``device``."""
    return service("s", "a", preprocess={"image": {"size": [8, 8], "device": device}})


def with_engines(of: RuntimeNode, count: int | None) -> RuntimeNode:
    devices = (
        replace(
            each,
            jpeg_engines=count,
            slices=tuple(replace(piece, jpeg_engines=count) for piece in each.slices),
        )
        for each in of.status.devices
    )
    return replace(of, status=replace(of.status, devices=tuple(devices)))


@pytest.mark.parametrize(
    ("device", "engines", "measured"),
    [
        ("Auto", 1, {"gpu", "cpu"}),
        ("Auto", 0, {"cpu"}),
        ("Auto", None, {"cpu"}),
        ("GPU", 1, {"gpu"}),
        ("GPU", 0, {"gpu"}),
        ("GPU", None, {"gpu"}),
        ("CPU", 7, {"cpu"}),
    ],
)
def test_decoding_is_measured_on_parts_of_gpus_with_an_engine_or_that_are_asked_for(
    device: str, engines: int | None, measured: set[str]
) -> None:
    for slices, on_gpu in (((), FULL), (("1g.10gb",), SMALL)):
        found = lacking(on(device), [with_engines(board("n0", *slices), engines)])
        kinds = {"gpu": on_gpu, "cpu": ONE}
        assert {each for each in found if each[0] == STAGE} == {
            (STAGE, kinds[each]) for each in measured
        }


def test_decoding_is_not_measured_on_gpus_that_the_service_may_not_use() -> None:
    spec = {"placement": {"products": ["NVIDIA-H100-NVL"]}}
    of_images = service("s", "a", preprocess={"image": {"size": [8, 8]}}, **spec)
    assert lacking(of_images, [with_engines(board(), 1)]) == [(STAGE, ONE)]


def test_a_gpu_is_asked_to_measure_decoding_as_it_is_asked_for_any_model() -> None:
    tasks = assign([("vision.s", STAGE, SMALL)], [board("n0", "1g.10gb")], {"n0"}, {}, 0.0, (1,))
    assert tasks["n0"] == (ProfilingTask("vision.s", STAGE, "GPU-n0", "1g.10gb@0"),)


def test_a_node_that_says_nothing_offers_nothing() -> None:
    assert spots(node("n0"), (1,)) == ()


def profiles(*found: tuple[str, Any]) -> list[ModelProfile]:
    state = cluster([], [], [measurement(model, place) for model, place in found])
    return [ModelProfile.from_dict(each) for each in state_to_dict(state)["profiles"]]


def lacking(
    of: ModelService, nodes: Sequence[RuntimeNode], known: Sequence[ModelProfile] = (), **pools: Any
) -> list[tuple[str, tuple[str, str]]]:
    rules = [pool("p", **pools)]
    return [each[1:] for each in missing([latest(of, {})], known, nodes, rules, (1,))]


def test_every_member_is_measured_on_every_kind_of_place() -> None:
    found = lacking(service("s", "ab"), [board("n0"), board("n1"), board("n2", "1g.10gb"), cores()])
    assert found == [(member, place) for member in "ab" for place in (SMALL, FULL, ONE)]


def test_what_is_measured_is_not_measured_again() -> None:
    found = lacking(service("s", "ab"), [board(), cores()], profiles(("a", gpu_place()), ("b", 1)))
    assert found == [("a", ONE), ("b", FULL)]


def test_a_model_whose_content_nobody_knows_is_measured_everywhere() -> None:
    known = profiles(("m", gpu_place()))
    assert lacking(service("s", digests=False), [board()], known) == [("m", FULL)]


@pytest.mark.parametrize(
    ("of", "rules", "found"),
    [
        (service("s", placement={"products": ["NVIDIA A100-SXM4-80GB"]}), {}, [("m", FULL)]),
        (service("s", placement={"products": ["NVIDIA-L4"]}), {}, []),
        (service("s", placement={"products": ["NVIDIA-A100-SXM4-80GB-MPS"]}), {}, []),
        (service("s", placement={"poolSelector": {"matchLabels": {"a": "b"}}}), {}, []),
        (
            service("s", placement={"poolSelector": {"matchLabels": {"a": "b"}}}),
            {"labels": {"a": "b"}},
            [("m", FULL)],
        ),
        (service("s", formats={"m": "TorchScript"}), {}, []),
        (service("s", formats={"m": "TorchScript"}), {"trust": {"allowCode": True}}, [("m", FULL)]),
    ],
)
def test_only_where_the_service_may_run(
    of: ModelService, rules: dict[str, Any], found: Any
) -> None:
    assert lacking(of, [board()], **rules) == found


def test_a_node_of_no_pool_is_asked_for_nothing() -> None:
    assert lacking(service("s"), [board(labels={"tessera.dev/pool": "gone"})]) == []


def version(*members: str) -> Version:
    return latest(service("s", members), {})


def tasks(
    nodes: Sequence[RuntimeNode],
    members: str = "m",
    waiting: dict[Any, float] | None = None,
    usable: Sequence[str] | None = None,
) -> dict[str, str]:
    """Member and slice by node."""
    names = [each.metadata.name for each in nodes] if usable is None else usable
    wanted = missing([version(*members)], (), nodes, [pool()], (1,))
    found = assign(wanted, nodes, names, waiting or {}, 100.0, (1,))
    assert all(len(each) == 1 for each in found.values())
    return {name: f"{each[0].member} {each[0].slice}" for name, each in found.items()}


def test_a_node_measures_one_thing_at_a_time_and_the_idlest_is_asked_first() -> None:
    assert tasks([board("n0", copies=2), board("n1"), board("n2", copies=1)]) == {"n1": "m full"}
    assert tasks([board("n0", copies=2), board("n1")], "ab") == {"n1": "a full", "n0": "b full"}
    assert tasks([board("n0")], "ab") == {"n0": "a full"}


def test_a_model_is_measured_on_one_place_at_a_time() -> None:
    """The first measurement tells what the model is, which may be known already."""
    assert len(tasks([board("n0"), cores("c0")])) == 1


def test_a_node_that_does_not_answer_is_asked_for_nothing() -> None:
    assert tasks([board("n0"), board("n1")], usable=["n1"]) == {"n1": "m full"}
    assert tasks([board("n0")], usable=[]) == {}


def test_what_is_being_measured_goes_on_where_it_is() -> None:
    task = ProfilingTask("vision.s", "m", "GPU-n1", "full")
    assert tasks([board("n0"), board("n1", copies=3, profiling=(task,))]) == {"n1": "m full"}


def test_what_is_measured_twice_goes_on_once() -> None:
    nodes = [
        board(name, profiling=(ProfilingTask("vision.s", "m", f"GPU-{name}", "full"),))
        for name in ("n0", "n1")
    ]
    assert tasks(nodes) == {"n0": "m full"}


def test_what_need_not_be_measured_any_more_is_taken_back() -> None:
    task = ProfilingTask("vision.gone", "m", "GPU-n0", "full")
    assert tasks([board("n0", profiling=(task,))]) == {"n0": "m full"}


def test_what_has_failed_waits_and_others_go_on() -> None:
    key = ("vision.s", "a", FULL)
    assert tasks([board("n0")], "ab", {key: 101.0}) == {"n0": "b full"}
    assert tasks([board("n0")], "ab", {key: 100.0}) == {"n0": "a full"}


@given(st.lists(st.sampled_from(("gpu", "cut", "cpu")), max_size=6), st.integers(1, 4))
def test_everything_is_measured_in_the_end(sorts: list[str], count: int) -> None:
    make = {
        "gpu": lambda name: board(name),
        "cut": lambda name: board(name, "1g.10gb", "2g.20gb"),
        "cpu": cores,
    }
    nodes = [make[sort](f"n{index}") for index, sort in enumerate(sorts)]
    names = [each.metadata.name for each in nodes]
    wanted = list(missing([version(*"abcd"[:count])], (), nodes, [pool()], (1,)))
    total = len(wanted)
    for _ in range(total):
        given = assign(wanted, nodes, names, {}, 0.0, (1,))
        assert given
        nodes = [
            replace(each, spec=replace(each.spec, profiling=given.get(each.metadata.name, ())))
            for each in nodes
        ]
        assert assign(wanted, nodes, names, {}, 0.0, (1,)) == given
        name, (task,) = min(given.items())
        (of,) = (each for each in nodes if each.metadata.name == name)
        (spot,) = (s for s in spots(of, (1,)) if (s.device, s.slice) == (task.device, task.slice))
        wanted.remove((task.service, task.member, spot.place))
    assert wanted == []


ROWS = (ProfileRow(1, 1, 2.0, 2.2, 500.0, 900.0), ProfileRow(8, 1, 4.0, 4.4, 2000.0, 900.0))


def result(**rest: Any) -> ProfileResult:
    given: dict[str, Any] = {
        "service": "vision.s",
        "member": "m",
        "model_digest": digest("m"),
        "device_class": gpu_place(),
        "engine": "torch 2",
        "rows": ROWS,
    }
    return ProfileResult(**(given | rest))


def test_a_result_becomes_a_profile_in_the_namespace_of_its_service() -> None:
    found = to_profile(result())
    assert found is not None
    assert found.metadata.namespace == "vision"
    assert found.metadata.name.startswith(digest("m").removeprefix("sha256:")[:12])
    assert found.spec.model_digest == digest("m")
    assert found.status.rows == ROWS
    assert found.status.fit is not None
    assert ModelProfile.from_dict(found.to_dict()) == found


def test_each_kind_of_place_has_a_profile_of_its_own() -> None:
    names = set()
    for place in (gpu_place(), gpu_place("1g.10gb"), gpu_place("1g.10gb+me")):
        found = to_profile(result(device_class=place))
        assert found is not None
        names.add(found.metadata.name)
    assert len(names) == 3


@pytest.mark.parametrize(
    "lack",
    [
        {"model_digest": None},
        {"device_class": None},
        {"engine": None},
        {"rows": ()},
        {"rows": (ROWS[0], ROWS[0])},
    ],
)
def test_what_is_not_whole_is_no_profile(lack: dict[str, Any]) -> None:
    assert to_profile(result(**lack)) is None


class Lab:
    """Measuring on some nodes, as the controller has it."""

    def __init__(self, *nodes: RuntimeNode, of: ModelService | None = None) -> None:
        self.of = of or service("s", digests=False)
        self.world, self.cluster = World(), MemoryCluster()
        self.documents: dict[Key, Document] = {}
        self.writer = Writer(self.cluster, self.documents)
        self.measuring = Measuring((1,))
        self.world.put(pool().to_dict())
        self.put(*nodes)

    def put(self, *nodes: RuntimeNode) -> None:
        for each in nodes:
            self.world.put(each.to_dict())

    def decision(self) -> Decision:
        newest = {"vision.s": latest(self.of, {})}
        state = cluster([], [], [])
        return Decision(state, plan(state), {}, newest, {}, is_new=False)

    def round(self, now_s: float) -> dict[str, str]:
        """See what there is and ask for what is next: member and slice by node."""
        self.measuring.see(self.world.nodes, self.decision(), self.writer, now_s)
        for key, document in self.documents.items():
            if key[0] == "ModelProfile":
                self.world.put(document)
        names = {each.metadata.name for each in self.world.nodes}
        given = self.measuring.assign(self.decision(), self.world, names, now_s)
        for each in self.world.nodes:
            found = given.get(each.metadata.name, ())
            pinned = (served(self.of),) if found else ()
            kept = tuple(r for r in each.status.profiles if found and r.member == found[0].member)
            spec = replace(each.spec, profiling=tuple(found), candidates=pinned)
            self.put(replace(each, spec=spec, status=replace(each.status, profiles=kept)))
        return {name: f"{each[0].member} {each[0].slice}" for name, each in given.items()}

    def report(self, name: str, **rest: Any) -> None:
        (found,) = (each for each in self.world.nodes if each.metadata.name == name)
        status = replace(found.status, profiles=(result(**rest),))
        self.put(replace(found, status=status))


FAILED: dict[str, Any] = {
    "rows": (),
    "engine": None,
    "device_class": None,
    "problem": "out of memory",
}


def test_a_result_is_written_and_what_was_measured_is_complete() -> None:
    lab = Lab(board("n0"))
    assert lab.round(0) == {"n0": "m full"}
    assert lab.measuring.under_way
    assert lab.measuring.words("vision.s") == "m on n0 GPU-n0 full"
    lab.report("n0")
    lab.of = service("s")  # its digest is known by now
    assert lab.round(10) == {}
    assert not lab.measuring.under_way
    assert lab.measuring.words("vision.s") == ""
    (profile,) = (key for key in lab.cluster.objects if key[0] == "ModelProfile")
    assert lab.cluster.objects[profile]["status"]["rows"]


def test_the_digest_of_what_was_fetched_is_told() -> None:
    lab = Lab(board("n0"))
    lab.round(0)
    lab.report("n0", model_digest=digest("fetched"))
    lab.round(1)
    uri = lab.of.spec.members[0].model.uri
    assert lab.measuring.digests == {("vision.s", "m", uri): digest("fetched")}


def test_a_failure_is_told_and_tried_again_later_and_later() -> None:
    lab, asked = Lab(board("n0")), []
    for second in range(200):
        if lab.round(second):
            asked.append(second)
            lab.report("n0", **FAILED)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert "out of memory" in lab.measuring.problem("vision.s")
    assert len(pauses) >= 3
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses))


def test_a_place_on_which_a_model_cannot_be_measured_stops_no_other_place() -> None:
    lab, asked = Lab(board("n0", "1g.10gb"), board("n1")), set()
    for second in range(60):
        for name, task in lab.round(second).items():
            asked.add(task)
            if name == "n0":
                lab.report(name, **FAILED)
    assert asked == {"m 1g.10gb@0", "m full"}


def test_a_model_that_cannot_be_fetched_is_not_tried_on_every_place_at_once() -> None:
    lab = Lab(board("n0"), cores("c0"))
    asked = []
    for second in range(15):
        for name in lab.round(second):
            asked.append(name)
            lab.report(name, **FAILED, model_digest=None)
    assert len(asked) == 1


def test_a_new_version_does_not_wait_for_the_failures_of_the_one_before() -> None:
    lab = Lab(board("n0"))
    lab.round(0)
    lab.report("n0", **FAILED)
    assert lab.round(1) == {}
    lab.of = service("s", digests=False, generation=2)
    assert lab.round(2) == {"n0": "m full"}
    assert lab.measuring.problem("vision.s") == ""


def test_results_of_tasks_that_nobody_gave_are_left_alone() -> None:
    lab = Lab(board("n0"))
    lab.report("n0", member="other")
    lab.measuring.see(lab.world.nodes, lab.decision(), lab.writer, 0)
    assert lab.cluster.calls == []
