"""Which variants a node runs of those that it was told, and what it builds before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera_core.api import RuntimeNode
from tessera_core.tuning.variants import parse
from tessera_runtime.agent.kept import Fallback
from tessera_runtime.agent.observe import kind_of
from tessera_runtime.agent.translate import LocalModel, Site
from tessera_runtime.agent.variants import as_run, fallen, next_build, ordered, told
from tessera_runtime.devices.inventory import Inventory
from tessera_runtime.target import (
    InstanceReport,
    InstanceTarget,
    Ports,
    ServerReport,
    ServerTarget,
)

DIGEST = "sha256:" + "cd" * 32
SEEN = Inventory((0, 1, 2, 3), 4096, ())
SITE = Site(SEEN, allow_code=False)
KIND = kind_of(SEEN)
QUICK, COMPILED = "openvino/fp32", "inductor/fp32"
BUILT = {(DIGEST, "cpu", "cpu-2", COMPILED)}
MODELS = {("a.a", "m"): LocalModel("/m", DIGEST)}
NOTHING = ServerTarget()


def node(*variants: str) -> RuntimeNode:
    """Told one copy on each pair of cores."""
    model = {"uri": "https://m/m.pt2", "format": "TorchExport"}
    objective = {"target": "50ms", "percent": "99"}
    instances = [
        {
            "service": "a.a",
            "member": "m",
            "slice": f"cpu-2@{2 * index}",
            "batch": 8,
            "variant": each,
        }
        for index, each in enumerate(variants)
    ]
    spec = {"members": [{"name": "m", "model": model}], "slo": {"objectives": [objective]}}
    members = [{"name": "m", "digest": DIGEST}]
    return RuntimeNode.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": "n"},
            "spec": {
                "epoch": 1,
                "devices": [{"uuid": "cpu", "instances": instances}],
                "services": [{"name": "a.a", "generation": 1, "spec": spec, "members": members}],
            },
        }
    )


def runs(of: RuntimeNode) -> list[str]:
    return [each.variant for device in of.spec.devices for each in device.instances]


def report(device: str = "cpu/cpu-2@0", **faulty: str) -> ServerReport:
    names = {key.replace("_", "/"): why for key, why in faulty.items()}
    instance = InstanceReport("a.a", "m", device, 1, 1, 1, 8, 1.0, ("",), names)
    return ServerReport(1, True, (), (), 0, 1, 0.0, 0.0, Ports(), (instance,))


def fallback(variant: str, reason: str = "it failed") -> Fallback:
    return Fallback("a.a", "m", DIGEST, "cpu", "cpu-2", variant, reason)


def test_what_the_server_calls_faulty_is_not_run_wherever_it_is() -> None:
    of = node(QUICK, QUICK)
    found = fallen(of, KIND, report(openvino_fp32="it failed"), ())
    assert found == (fallback(QUICK),)
    assert runs(as_run(of, KIND, found, (), NOTHING)) == ["", ""]
    (said,) = told(found)
    assert (said.model_digest, said.product, said.slice, said.variant, said.reason) == (
        *(DIGEST, "cpu", "cpu-2", QUICK),
        "it failed",
    )


def test_the_first_reason_stays_while_the_variant_is_ordered() -> None:
    found = fallen(node(QUICK), KIND, report(openvino_fp32="again"), (fallback(QUICK, "first"),))
    assert [each.reason for each in found] == ["first"]
    assert fallen(node(COMPILED), KIND, None, found) == ()
    assert fallen(node(""), KIND, None, found) == ()


def test_what_is_faulty_elsewhere_or_was_is_no_fallback() -> None:
    assert fallen(node(QUICK), KIND, report("cpu/cpu-2@2", openvino_fp32="it failed"), ()) == ()
    assert fallen(node(QUICK), KIND, report(torch_bf16="it failed"), ()) == ()


def test_what_is_compiled_runs_when_it_was_built() -> None:
    of = node(COMPILED)
    assert parse(COMPILED).compiles
    assert runs(as_run(of, KIND, (), (), NOTHING)) == [""]
    assert runs(as_run(of, KIND, (), BUILT, NOTHING)) == [COMPILED]
    assert runs(as_run(node(QUICK), KIND, (), (), NOTHING)) == [QUICK]


@pytest.mark.parametrize("before", [COMPILED, QUICK])
def test_until_then_what_ran_before_runs_on(before: str) -> None:
    """After a restart of the agent that may be the very variant."""
    from support.targets import member, server, service

    plain = member("m", "/m", instances=1)  # type: ignore[arg-type]
    place = InstanceTarget("cpu/cpu-2@0", variant=before)
    values = {name: getattr(plain, name) for name in plain.__struct_fields__}
    made = service("x", type(plain)(**(values | {"instances": (place,)})))
    names = {name: getattr(made, name) for name in made.__struct_fields__}
    target = server(type(made)(**(names | {"name": "a.a"})))
    assert runs(as_run(node(COMPILED), KIND, (), (), target)) == [before]


def test_one_thing_is_built_at_a_time_on_the_share_that_serves() -> None:
    found = next_build(node(QUICK, COMPILED), KIND, (), (), MODELS, SITE)
    assert found is not None
    order, request = found
    assert order.built == (DIGEST, "cpu", "cpu-2", COMPILED)
    assert [each.cores for each in request.devices] == [(2, 3)]
    assert (request.variant, request.batches, request.rounds) == (COMPILED, (1,), 1)


@pytest.mark.parametrize(
    ("fallbacks", "built", "models"),
    [((fallback(COMPILED),), set(), MODELS), ((), BUILT, MODELS), ((), set(), {})],
)
def test_nothing_is_built_twice_or_in_vain(fallbacks, built, models) -> None:
    assert next_build(node(COMPILED), KIND, fallbacks, built, models, SITE) is None


def test_a_copy_of_a_model_that_nobody_knows_is_left_out() -> None:
    of = node(QUICK)
    service = replace(of.spec.services[0], members=())
    assert list(ordered(replace(of, spec=replace(of.spec, services=(service,))), KIND)) == []
