"""The parts of the digits demo: data, export, comparison, verdict, picture. The whole is `make demo`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from examples.digits.check import Compared, Expected, accuracy, compare, expect, run_file
from examples.digits.demo import Measured, accuracy_table, judge, load_table, model_service
from examples.digits.load import (
    BASE,
    IMAGES,
    MOST_RATE,
    PROTOCOLS,
    STEP,
    Maximum,
    Tick,
    choose_rates,
    grouped,
    maximum,
    ramp,
)
from examples.digits.networks import NETWORKS
from examples.digits.picture import draw
from examples.digits.show import cells
from examples.digits.train import HELD_OUT, Digits, export, read_digits, train

from tessera_cli.loadgen import OpenLoop, Phase, Protocol, Samples, summarise
from tessera_core.api import Combine, ModelService, admission, decode
from tessera_runtime.agent.status import MemberStatus, ServiceStatus
from tessera_runtime.protocol.messages import ModelInferResponse

RNG = np.random.default_rng(5)


def test_the_split_is_fixed_by_its_seed_and_holds_images_out() -> None:
    training, held_out = read_digits(3)
    again, _ = read_digits(3)
    assert np.array_equal(training.images, again.images)
    assert len(held_out.images) == HELD_OUT
    assert len(training.images) + HELD_OUT == 1797
    assert HELD_OUT % IMAGES == 0, "requests are full"
    assert 0 <= training.images.min() < training.images.max() <= 1
    assert not np.array_equal(held_out.images, read_digits(4)[1].images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_answers_like_the_network_at_any_batch(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    path = export(name, network, tmp_path)
    for rows in (1, 8, 50):
        images = RNG.random((rows, 8, 8), dtype=np.float32)
        with torch.inference_mode():
            wanted = network(torch.from_numpy(images)).numpy()
        assert np.allclose(run_file(path, images), wanted, 1e-4, 1e-6)
        assert np.allclose(wanted.sum(axis=1), 1, atol=1e-5)


def test_training_learns_from_few_images_and_repeats() -> None:
    training, _ = read_digits(3)
    few = Digits(training.images[:128], training.labels[:128])
    said: list[str] = []
    network, losses = train("mlp", few, 1, said.append)
    assert losses[-1] < losses[0] / 2
    assert len(said) == len(losses)
    assert train("mlp", few, 1, said.append)[1] == losses
    assert not network.training


def test_the_model_service_of_the_demo_is_valid(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pt2" for name in NETWORKS}
    decoded = decode(yaml.safe_load(model_service(files)))
    assert isinstance(decoded, ModelService)
    assert admission(decoded.spec, local=True, allow_code=False) == ()
    assert decoded.spec.ensemble.combine is Combine.MEAN
    assert decoded.spec.traffic.items_per_request == IMAGES
    assert decoded.served_name == "default.digits"


def http_body(answer: np.ndarray) -> bytes:
    output = {"name": "p", "datatype": "FP32", "shape": answer.shape}
    output["parameters"] = {"binary_data_size": answer.nbytes}
    header = json.dumps({"model_name": "m", "outputs": [output]})
    return header.encode() + answer.tobytes()


def grpc_body(answer: np.ndarray) -> bytes:
    message = ModelInferResponse(
        outputs=[{"name": "p", "datatype": "FP32", "shape": answer.shape}],
        raw_output_contents=[answer.tobytes()],
    ).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def samples(answers: list[bytes], statuses: list[int] | None = None) -> Samples:
    count = len(answers)
    at = np.arange(count) / 100
    status = np.array(
        statuses if statuses is not None else [200, 1000] * (count // 2), dtype=np.int32
    )
    return Samples(at, at, at + 0.01, status, tuple(answers))


def probabilities(requests: int) -> np.ndarray:
    raw = RNG.random((requests, IMAGES, 10), dtype=np.float32)
    return raw / raw.sum(axis=-1, keepdims=True)


def right_answers(expected: np.ndarray) -> list[bytes]:
    """Every request once over each protocol, in the order in which the load sends."""
    bodies = {Protocol.HTTP: http_body, Protocol.GRPC: grpc_body}
    return [bodies[protocol](wanted) for wanted in expected for protocol in PROTOCOLS]


def test_equal_answers_of_both_protocols_compare_equal() -> None:
    expected = probabilities(3)
    found = compare(samples(right_answers(expected)), PROTOCOLS, expected)
    assert (found.answers, found.different, found.worst) == (6, 0, 0.0)
    assert np.array_equal(found.served, expected)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("wrong", ["off", "other digit", "another request's", "short", "garbage"])
def test_a_wrong_answer_is_found(which: int, wrong: str) -> None:
    expected = probabilities(2)
    expected[0, 3] = 0.0
    expected[0, 3, :2] = 0.500001, 0.499999
    answers = right_answers(expected)
    body = (http_body, grpc_body)[which]
    other = expected[0].copy()
    if wrong == "off":
        other[1, 2] += 0.001
        answers[which] = body(other)
    elif wrong == "other digit":
        other[3, :2] = 0.499999, 0.500001
        assert np.allclose(other, expected[0], 1e-4, 1e-5), "within the tolerance"
        answers[which] = body(other)
    elif wrong == "another request's":
        answers[which] = body(expected[1])
    elif wrong == "short":
        answers[which] = body(expected[0][:1])
    else:
        answers[which] = b"\0\0"
    assert compare(samples(answers), PROTOCOLS, expected).different == 1


def test_refused_requests_are_not_compared_and_count_as_wrong_digits() -> None:
    expected = probabilities(1)
    found = compare(samples([b"{}", b""], [429, 1008]), PROTOCOLS, expected)
    assert (found.answers, found.different) == (0, 0)
    labels = expected[0].argmax(axis=-1).astype(np.int64)
    assert accuracy(found.served[0], labels) == 0
    assert accuracy(expected[0], labels) == 1


def measured(**changes: object) -> Measured:
    good = samples([b""] * 400)
    base = Measured(
        rates=choose_rates(100.0),
        phases=good,
        ticks=(),
        ramp=good,
        maximum=Maximum(90.0, False),
        server_status=0,
    )
    return replace(base, **changes)


def verdict(given: Measured, compared: Compared) -> list[bool]:
    phases = [summarise(given.phases, 2.0 * turn, 2.0 * turn + 2, 100.0) for turn in (0, 1)]
    return [check.holds for check in judge(given, phases, compared, compared)]


FINE = Compared(400, 0, 0.0, np.zeros((1, IMAGES, 10), np.float32))


def test_all_checks_hold_when_all_is_well() -> None:
    assert verdict(measured(), FINE) == [True] * 4


def test_each_check_fails_alone() -> None:
    assert verdict(measured(), replace(FINE, different=1)) == [False, True, True, True]
    assert verdict(measured(), replace(FINE, answers=0)) == [False, True, True, True]
    assert verdict(measured(server_status=1), FINE) == [True, True, True, False]
    slow = measured().phases
    slow = replace(slow, done=slow.done + np.where(np.arange(400) < 5, 0.2, 0.0))
    assert verdict(measured(phases=slow), FINE) == [True, False, True, True]
    lost = samples([b""] * 400, [200] * 399 + [0])
    assert verdict(measured(ramp=lost), FINE) == [True, True, False, True]


def test_rates_are_shares_of_the_prediction_within_what_one_core_carries() -> None:
    rates = choose_rates(100.0)
    assert (rates.base, rates.step) == (100 * BASE, 100 * STEP)
    assert choose_rates(1e6).step == MOST_RATE * STEP
    assert ramp(choose_rates(1e6), 1).phases[-1].rate_per_s <= 3 * MOST_RATE


def test_the_maximum_is_the_fastest_step_within_the_slo() -> None:
    shape = OpenLoop((Phase(10, 1.0), Phase(20, 1.0), Phase(30, 1.0)), 1)
    at = np.arange(300) / 100
    status = np.full(300, 200, np.int32)

    def answered(late_from: float) -> Samples:
        return Samples(at, at, at + np.where(at >= late_from, 0.2, 0.01), status, ())

    assert maximum(answered(2.0), shape, 100, 99) == Maximum(20, False)
    assert maximum(answered(9.0), shape, 100, 99) == Maximum(30, True)
    assert maximum(answered(0.0), shape, 100, 99) == Maximum(0, False)


def status() -> ServiceStatus:
    cnn = MemberStatus("cnn", "cpu", 2, 2, 64, 8.25, 0, 0)
    mlp = MemberStatus("mlp", "cpu", 1, 1, 32, None, 0, 0)
    return ServiceStatus(
        name="default.digits",
        version="1",
        ready=True,
        slo_ms=100,
        percent=99,
        window_s=10,
        requests_per_second=50,
        p50_ms=5,
        p99_ms=12,
        attainment=0.9991,
        good=10,
        total=10,
        predicted_p99_ms=14.04,
        max_requests_per_second=300,
        members=(cnn, mlp),
        codes={},
    )


def tick(at_s: float, known: bool) -> Tick:
    return Tick(at_s, 50.2, 5.0, 12.3, 0, 1, 2, status() if known else None)


def test_a_row_of_the_live_table_shows_client_and_server() -> None:
    assert cells(tick(2.0, True), 100) == (
        *("2.0", "50", "5.0", "12.3 / 100", "14.0"),
        *("8.2 (64), - (32)", "2+1", "99.91%", "0", "1"),
    )
    assert cells(tick(2.0, False), 100)[4:8] == ("-", "-", "-", "-")


def test_the_picture_and_the_tables_are_drawn(tmp_path: Path) -> None:
    given = measured(ticks=(tick(0.5, False), tick(1.0, True), tick(3.5, True)))
    draw(given.phases, given.ticks, given.rates, 100.0, 2.0, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    phases = [summarise(given.phases, 2.0 * turn, 2.0 * turn + 2, 100.0) for turn in (0, 1)]
    assert load_table(given, phases, 2.0).row_count == 2
    labels = np.zeros(IMAGES, np.int64)
    images = np.zeros((IMAGES, 8, 8), np.float32)
    first = probabilities(1)[0]
    expected = Expected({"cnn": first}, first)
    assert accuracy_table(expected, FINE, Digits(images, labels)).row_count == 2


def test_requests_group_images_in_order() -> None:
    rows = np.arange(2 * IMAGES * 4, dtype=np.float32).reshape(2 * IMAGES, 2, 2)
    assert grouped(rows).shape == (2, IMAGES, 2, 2)
    assert np.array_equal(grouped(rows)[1, 0], rows[IMAGES])


@pytest.mark.slow
def test_the_expected_ensemble_is_the_mean_of_the_files(tmp_path: Path) -> None:
    torch.manual_seed(2)
    files = {name: export(name, NETWORKS[name]().eval(), tmp_path) for name in ("cnn", "mlp")}
    images = RNG.random((3, 8, 8), dtype=np.float32)
    found = expect(files, images)
    assert np.allclose(found.ensemble, (found.members["cnn"] + found.members["mlp"]) / 2, 1e-6)
