"""The picture of a plan: every part where it is, nothing twice, bounded, readable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import A100, cluster, cpu_node, gpu_node, measured, service
from tessera_core.gpu.geometry import Placement, layouts
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import model_of
from tessera_core.plan import (
    Assignment,
    ClusterState,
    DevicePlan,
    Plan,
    Refusal,
    ServicePlan,
    Slice,
    Why,
    plan,
    slice_name,
)
from tessera_core.plan.bars import MOST_LANES, MOST_NODES, MOST_PARTS, machines, shown
from tessera_core.plan.diagram import BAR_WIDTH, colours, diagram
from tessera_core.plan.state import NodeState

SVG = "{http://www.w3.org/2000/svg}"
A30 = "NVIDIA-A30"


def _assigned(
    node: str,
    device: str,
    piece: Slice,
    name: str = "vision.a",
    member: str = "m",
    load: float = 60.0,
    rate: float = 100.0,
) -> Assignment:
    return Assignment(name, member, node, device, piece, "any", 8, 2, rate, load, 12.5)


def _device(
    state: NodeState,
    index: int = 0,
    geometry: Iterable[Placement] = (),
    assignments: Sequence[Assignment] = (),
    recut: bool = False,
) -> DevicePlan:
    device = state.devices[index]
    return DevicePlan(
        state.name, device.uuid, device.product, tuple(geometry), recut, tuple(assignments)
    )


def _plan(devices: Iterable[DevicePlan], **rest: object) -> Plan:
    found: dict[str, object] = {
        "services": (),
        "refused": (),
        "idle": (),
        "cost": 3.0,
        "lower_bound": 2.5,
        "truncated": False,
    }
    return Plan("plan-1", tuple(devices), **{**found, **rest})  # type: ignore[arg-type]


def _state(*nodes: NodeState) -> ClusterState:
    return cluster(nodes, (), ())


def _drawn(plan: Plan, state: ClusterState) -> ElementTree.Element:
    return ElementTree.fromstring(diagram(plan, state))


def _bars(picture: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """The devices by ``node/uuid``."""
    return {
        (group.findtext(f"{SVG}title") or "").partition(":")[0]: group
        for group in picture.iter(f"{SVG}g")
        if group.get("class") == "device"
    }


def _spans(bar: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """Where rectangles of ``kind`` begin and end, as shares of the bar."""
    return sorted(
        (x / BAR_WIDTH, (x + float(rect.get("width", ""))) / BAR_WIDTH)
        for rect in bar.iter(f"{SVG}rect")
        if rect.get("class") == kind
        for x in [float(rect.get("x", "0"))]
    )


def _lanes(bar: ElementTree.Element) -> dict[str, list[dict[str, float]]]:
    """Geometry of the two rectangles of each member in a part, by the head of its title."""
    return {
        (group.findtext(f"{SVG}title") or "").partition(": ")[0]: [
            {key: float(rect.get(key, "")) for key in ("x", "y", "width", "height")}
            for rect in group.findall(f"{SVG}rect")
        ]
        for group in bar.iter(f"{SVG}g")
        if group.get("class") == "lane"
    }


def test_slices_lie_at_their_memory_slices_and_the_rest_is_free() -> None:
    node = gpu_node("n")
    geometry = (Placement("1g.10gb", 6), Placement("2g.20gb", 0), Placement("3g.40gb", 4))[:2]
    mine = _assigned("n", "GPU-n-0", Slice("2g.20gb", 0))
    plan = _plan([_device(node, geometry=geometry, assignments=[mine])])
    bar = _bars(_drawn(plan, _state(node)))["n/GPU-n-0"]
    assert _spans(bar, "slice") == [(0, 2 / 8)]
    # Cut and free: 1g at 6. Not cut: 2 to 5, and 7.
    assert _spans(bar, "free") == [(i / 8, (i + 1) / 8) for i in (2, 3, 4, 5, 6, 7)]
    (back, fill) = _lanes(bar)["vision.a/m on n/GPU-n-0 2g.20gb@0"]
    assert (back["x"], back["width"]) == (0, BAR_WIDTH / 4)
    assert fill["width"] == pytest.approx(0.6 * back["width"])


@pytest.mark.parametrize(("product", "slices"), [(A100, 8), (A30, 4)])
@given(data=st.data())
def test_any_layout_covers_every_memory_slice_once(data, product: str, slices: int) -> None:
    model = model_of(product)
    assert model is not None
    geometry = data.draw(st.sampled_from(layouts(model)[1:]))
    used = data.draw(st.lists(st.sampled_from(geometry), unique=True))
    node = gpu_node("n", product=product)
    mine = [_assigned("n", "GPU-n-0", Slice(each.profile, each.start)) for each in used]
    plan = _plan([_device(node, geometry=geometry, assignments=mine, recut=True)])
    bar = _bars(_drawn(plan, _state(node)))["n/GPU-n-0"]
    expected = []
    for each in used:
        profile = find_profile(model, each.profile)
        assert profile is not None
        expected.append((each.start / slices, (each.start + profile.memory_slices) / slices))
    assert _spans(bar, "slice") == sorted(expected)
    spans = sorted(_spans(bar, "slice") + _spans(bar, "free"))
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == 1
    assert len(_lanes(bar)) == len(used)


def test_a_whole_gpu_is_one_block_whose_members_lie_below_each_other() -> None:
    node = gpu_node("n")
    names = ("vision.a", "vision.b", "vision.c")
    mine = [_assigned("n", "GPU-n-0", Slice(), name) for name in names]
    bar = _bars(_drawn(_plan([_device(node, assignments=mine)]), _state(node)))["n/GPU-n-0"]
    assert _spans(bar, "slice") == [(0, 1)]
    assert _spans(bar, "free") == []
    backs = [_lanes(bar)[f"{name}/m on n/GPU-n-0 full"][0] for name in names]
    assert {back["width"] for back in backs} == {BAR_WIDTH}
    for above, below in pairwise(backs):
        assert below["y"] == above["y"] + above["height"]


def test_cores_are_drawn_where_they_are_and_free_runs_between() -> None:
    node = cpu_node("n", cores=16)
    mine = [
        _assigned("n", "cpu", Slice("cpu-4", 2, (2, 3, 4, 5))),
        _assigned("n", "cpu", Slice("cpu-2", 8, (8, 9)), "forms.b"),
    ]
    bar = _bars(_drawn(_plan([_device(node, assignments=mine)]), _state(node)))["n/cpu"]
    assert _spans(bar, "slice") == [(2 / 16, 6 / 16), (8 / 16, 10 / 16)]
    assert _spans(bar, "free") == [(0, 2 / 16), (6 / 16, 8 / 16), (10 / 16, 1)]
    assert "16 cores" in (bar.findtext(f"{SVG}title") or "")


def test_every_assignment_has_its_particulars_in_a_hover_title() -> None:
    node = gpu_node("n")
    mine = _assigned("n", "GPU-n-0", Slice(), "vision.quality", "resnet", 120, 480)
    picture = _drawn(_plan([_device(node, assignments=[mine])]), _state(node))
    assert (
        "vision.quality/resnet on n/GPU-n-0 full: 2 instances, batches up to 8; "
        "120 of 480 rows/s (25 %), predicted 12.5 ms"
    ) in [each.text for each in picture.iter(f"{SVG}title")]
    assert "vision.quality/resnet, 2 of batch 8" in "".join(picture.itertext())


@pytest.mark.parametrize(
    ("load", "rate", "filled"), [(0, 100, 0), (100, 100, 1), (150, 100, 1), (0, 0, 0), (5, 0, 1)]
)
def test_the_fill_is_the_load_and_never_wider_than_the_part(load, rate, filled) -> None:
    node = gpu_node("n")
    mine = _assigned("n", "GPU-n-0", Slice(), load=load, rate=rate)
    bar = _bars(_drawn(_plan([_device(node, assignments=[mine])]), _state(node)))["n/GPU-n-0"]
    ((_, fill),) = _lanes(bar).values()
    assert fill["width"] == filled * BAR_WIDTH


def test_devices_that_are_cut_anew_or_unhealthy_are_marked() -> None:
    node = gpu_node("n", gpus=3)
    sick = replace(node.devices[2], healthy=False)
    node = replace(node, devices=(*node.devices[:2], sick))
    geometry = (Placement("7g.80gb", 0),)
    mine = _assigned("n", "GPU-n-0", Slice("7g.80gb", 0))
    plan = _plan([_device(node, 0, geometry, [mine], recut=True), _device(node, 1)])
    bars = _bars(_drawn(plan, _state(node)))
    marks = {
        name: [text.text for text in bar.iter(f"{SVG}text") if text.get("class") == "mark"]
        for name, bar in bars.items()
    }
    assert marks == {"n/GPU-n-0": ["re-cut"], "n/GPU-n-1": [], "n/GPU-n-2": ["unhealthy"]}


def test_pools_have_their_nodes_and_unused_ones_are_counted() -> None:
    nodes = [gpu_node(f"a{i}", pool="left") for i in range(3)] + [gpu_node("b", pool="right")]
    mine = _assigned("a1", "GPU-a1-0", Slice())
    plan = _plan([_device(nodes[1], assignments=[mine]), _device(nodes[0])])
    picture = _drawn(plan, _state(*nodes))
    texts = [each.text for each in picture.iter(f"{SVG}text")]
    assert list(_bars(picture)) == ["a1/GPU-a1-0"]
    left, right = texts.index("pool left"), texts.index("pool right")
    assert texts.index("2 nodes unused") in range(left, right)
    assert texts.index("1 node unused") > right


def test_the_heading_says_cost_bound_gap_and_what_is_missing() -> None:
    refusal = Refusal(Why.INSUFFICIENT_CAPACITY, "full")
    plan = _plan(
        [],
        services=(ServicePlan("vision.a", 1.0, 1.0, 1.0, 2.0, 99.0, short=refusal),),
        refused=(("vision.b", "m", refusal),),
    )
    picture = _drawn(plan, _state(gpu_node("n")))
    text = "".join(picture.itertext())
    assert "cost 3 per hour, lower bound 2.5, gap 20 %" in text
    assert "1 service on 0 devices; 0 of 1 node used; 1 service short; 1 member refused" in text


def test_it_is_an_image_with_a_name_and_nothing_active_or_fetched() -> None:
    node = gpu_node("n")
    plan = _plan([_device(node, assignments=[_assigned("n", "GPU-n-0", Slice())])])
    picture = _drawn(plan, _state(node))
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == picture[0].text
    assert picture[1].tag == f"{SVG}desc"
    tags = {each.tag.removeprefix(SVG) for each in picture.iter()}
    assert tags == {
        *("svg", "title", "desc", "style", "defs", "pattern", "path", "g", "rect", "text")
    }
    for each in picture.iter():
        assert not {name for name in each.attrib if name.startswith("on") or "href" in name}
    style = picture.findtext(f"{SVG}style") or ""
    assert "@import" not in style
    assert style.count("url(") == style.count("url(#")


def test_names_from_outside_are_text_and_never_markup() -> None:
    markup = "</text><script>alert(1)</script>\"'&]]>"
    hostile = markup + "\x00\x1b\ud800"
    node = gpu_node("n", pool=hostile)
    node = replace(node, devices=(replace(node.devices[0], product=hostile, uuid=hostile),))
    mine = _assigned("n", hostile, Slice(), markup, hostile)
    text = diagram(_plan([_device(node, assignments=[mine])]), _state(node))
    picture = ElementTree.fromstring(text.encode())
    assert not list(picture.iter(f"{SVG}script"))
    shown_text = "".join(picture.itertext())
    assert f"pool {markup}\ufffd\ufffd\ufffd" in shown_text


@st.composite
def _shuffled(draw: st.DrawFn) -> tuple[Plan, ClusterState]:
    nodes = [gpu_node(f"n{i}", 2, pool=f"p{i % 2}") for i in range(4)]
    devices = [
        _device(
            node, index, assignments=[_assigned(node.name, f"GPU-{node.name}-{index}", Slice())]
        )
        for node in nodes
        for index in range(2)
    ]
    mixed = draw(st.permutations(nodes))
    return _plan(devices), _state(*mixed)


@given(_shuffled())
def test_the_order_of_nodes_changes_no_byte(case: tuple[Plan, ClusterState]) -> None:
    plan, state = case
    in_order = replace(state, nodes=tuple(sorted(state.nodes, key=lambda node: node.name)))
    assert diagram(plan, state) == diagram(plan, in_order)


def _fleet(count: int, pools: int = 3) -> tuple[Plan, ClusterState]:
    """``count`` nodes of 8 GPUs, each cut into seven slices in use."""
    nodes = [gpu_node(f"node-{i:04}", 8, pool=f"pool-{i % pools}") for i in range(count)]
    geometry = tuple(Placement("1g.10gb", start) for start in range(7))
    devices = [
        _device(
            node,
            index,
            geometry,
            [
                _assigned(node.name, node.devices[index].uuid, Slice(each.profile, each.start))
                for each in geometry
            ],
        )
        for node in nodes
        for index in range(8)
    ]
    return _plan(devices), _state(*nodes)


def test_a_large_fleet_gives_a_bounded_file_that_says_what_it_leaves_out() -> None:
    plan, state = _fleet(1250)
    found = machines(plan, state)
    drawn = shown(found)
    assert sum(each.parts for pool in drawn.values() for each in pool) <= MOST_PARTS
    lengths = [len(each) for each in drawn.values()]
    assert max(lengths) - min(lengths) <= 1  # pools share what can be drawn
    text = diagram(plan, state)
    assert len(text) < 5_000_000
    left_out = [
        int(each.text.split()[0])
        for each in ElementTree.fromstring(text).iter(f"{SVG}text")
        if each.text and each.text.endswith("nodes used, not drawn")
    ]
    assert sum(left_out) + sum(lengths) == 1250


def test_no_more_nodes_are_drawn_than_the_bound() -> None:
    nodes = [cpu_node(f"n{i:04}", cores=2) for i in range(MOST_NODES + 50)]
    mine = [_assigned(node.name, "cpu", Slice("cpu-2", 0, (0, 1))) for node in nodes]
    plan = _plan(_device(node, assignments=[each]) for node, each in zip(nodes, mine, strict=True))
    picture = _drawn(plan, _state(*nodes))
    assert len(_bars(picture)) == MOST_NODES
    assert "50 nodes used, not drawn" in [each.text for each in picture.iter(f"{SVG}text")]


def test_one_node_is_drawn_whatever_it_holds_and_crowded_parts_say_how_many_more() -> None:
    node = gpu_node("n", gpus=1100)
    crowd = [
        _assigned("n", device.uuid, Slice(), f"s.x{index}")
        for device in node.devices
        for index in range(30)
    ]
    devices = [
        _device(node, index, assignments=crowd[30 * index : 30 * index + 30])
        for index in range(len(node.devices))
    ]
    bars = _bars(_drawn(_plan(devices), _state(node)))
    assert len(bars) == 1100
    bar = bars["n/GPU-n-0"]
    assert len(_lanes(bar)) == MOST_LANES - 1
    more = [each.text for each in bar.iter(f"{SVG}text") if (each.text or "").startswith("and ")]
    assert more == [f"and {30 - MOST_LANES + 1} more"]


def _contrast(one: str, two: str) -> float:
    """WCAG 2.2 contrast ratio of two ``#rrggbb`` colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@given(st.text())
def test_labels_are_readable_on_every_service_colour(name: str) -> None:
    assert all(_contrast(colour, "#111111") > 4.5 for colour in colours(name))
    assert colours(name) == colours(name)


def test_the_colour_of_a_service_is_its_own_everywhere() -> None:
    assert colours("vision.a") != colours("vision.b")
    nodes = [gpu_node("n1"), gpu_node("n2")]
    plan = _plan(
        _device(node, assignments=[_assigned(node.name, node.devices[0].uuid, Slice())])
        for node in nodes
    )
    fills = [
        [rect.get("fill") for rect in group.findall(f"{SVG}rect")]
        for group in _drawn(plan, _state(*nodes)).iter(f"{SVG}g")
        if group.get("class") == "lane"
    ]
    assert fills == 2 * [list(colours("vision.a"))]


@pytest.mark.parametrize(
    ("geometry", "pieces", "message"),
    [
        ((), [Slice("1g.10gb", 3)], "n/GPU-n-0: instances in 1g.10gb@3, which the device does not"),
        ((Placement("9g.99gb", 0),), [], "A100-80 has no profile 9g.99gb"),
        ((Placement("3g.40gb", 0), Placement("2g.20gb", 2)), [], "2g.20gb@2 overlaps"),
        ((Placement("3g.40gb", 6),), [], "3g.40gb@6 overlaps another part or the end"),
    ],
)
def test_a_plan_that_the_state_cannot_hold_is_not_drawn(geometry, pieces, message) -> None:
    node = gpu_node("n")
    mine = [_assigned("n", "GPU-n-0", piece) for piece in pieces]
    with pytest.raises(ValueError, match=message):
        diagram(_plan([_device(node, geometry=geometry, assignments=mine)]), _state(node))


def test_a_plan_of_another_state_is_not_drawn() -> None:
    plan = _plan([_device(gpu_node("n"))])
    with pytest.raises(ValueError, match="n/GPU-n-0, a device that the state does not have"):
        diagram(plan, _state(gpu_node("other")))


def test_a_made_plan_is_drawn_whole() -> None:
    nodes = [gpu_node("g", 2), cpu_node("c", cores=8)]
    services = [service("a", ("m1", "m2"), rps=200), service("b", ("m3",), rps=50)]
    profiles = [measured(name, 2) for name in ("m1", "m2", "m3")]
    state = cluster(nodes, services, profiles)
    made = plan(state)
    lanes = {title for bar in _bars(_drawn(made, state)).values() for title in _lanes(bar)}
    assert made.assignments
    assert lanes == {
        f"{each.service}/{each.member} on {each.node}/{each.device} {slice_name(each.slice)}"
        for each in made.assignments
    }
