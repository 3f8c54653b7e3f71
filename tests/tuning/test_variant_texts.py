import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api.members import ModelFormat
from tessera_core.api.modelservice import Precision
from tessera_core.tuning.variants import (
    BIG_GPU_SMS,
    MOST_LENGTH,
    OPTIONS,
    PRECISIONS,
    Backend,
    candidates,
    parse,
    variant,
)

KINDS = ("cpu", "cuda")


@st.composite
def variants(draw: st.DrawFn):
    backend = draw(st.sampled_from(Backend))
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS[backend]))))
    options = [(name, draw(st.sampled_from(OPTIONS[backend][name]))) for name in sorted(names)]
    return variant(backend, draw(st.sampled_from(Precision)), draw(st.permutations(options)))


@given(variants())
def test_a_text_names_one_variant_and_a_variant_has_one_text(found) -> None:
    assert parse(str(found)) == found
    assert len(str(found)) <= MOST_LENGTH


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected <backend>/<precision>"),
        ("openvino", "expected <backend>/<precision>"),
        ("tvm/fp32", "backends torch, inductor, onnxruntime, openvino"),
        ("torch/int4", "precisions fp32"),
        ("torch/bf16/", "is written 'torch/bf16'"),
        ("torch/bf16/quick", "option 'quick'; torch has channels-last"),
        ("onnxruntime/fp32/graph=some", "allowed: 'basic', 'extended', 'all'"),
        ("onnxruntime/fp32/spin=on,graph=all", "is written 'onnxruntime/fp32/graph=all,spin=on'"),
        ("onnxruntime/fp32/spin=on,spin=off", "said twice"),
        ("torch/bf16/channels-last=", "is written 'torch/bf16/channels-last'"),
        ("torch/bf16/" + "x" * 90, "101 characters; allowed: at most 96"),
    ],
)
def test_another_text_is_refused_with_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="variant") as error:
        parse(text)
    assert words in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_format", ModelFormat)
def test_candidates_are_few_distinct_and_can_run_there(model_format, kind) -> None:
    found = candidates(model_format, kind, Precision, Backend, 14)
    assert len(found) <= 12
    assert len(set(found)) == len(found)
    for each in found:
        assert parse(str(each)) == each
        assert each.precision in PRECISIONS[each.backend][kind]


@pytest.mark.parametrize("model_format", [ModelFormat.ONNX, ModelFormat.TORCH_EXPORT])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_is_tried_only_where_it_is_allowed(model_format, kind) -> None:
    allowed = {each.precision for each in candidates(model_format, kind, [Precision.FP32], Backend)}
    assert allowed == {Precision.FP32}


def test_backends_that_are_not_installed_are_not_tried() -> None:
    found = candidates(ModelFormat.TORCH_EXPORT, "cpu", Precision, [Backend.OPENVINO])
    assert {each.backend for each in found} == {Backend.OPENVINO}


def test_programs_of_users_have_no_variants() -> None:
    for model_format in (ModelFormat.PYTHON, ModelFormat.TORCH_SCRIPT, ModelFormat.PREPROCESS):
        assert candidates(model_format, "cpu", Precision, Backend) == ()


@pytest.mark.parametrize(
    ("sm_count", "lifted"), [(14, True), (BIG_GPU_SMS - 1, True), (BIG_GPU_SMS, False), (0, False)]
)
def test_the_gate_of_max_autotune_is_lifted_on_small_slices(sm_count: int, lifted: bool) -> None:
    found = candidates(ModelFormat.TORCH_EXPORT, "cuda", Precision, Backend, sm_count)
    searched = [each for each in found if each.option("max-autotune") is not None]
    assert searched
    assert all((each.option("small-gpu") is not None) == lifted for each in searched)
