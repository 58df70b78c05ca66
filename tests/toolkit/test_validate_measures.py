"""Measures of drift: closed forms, and the same truth as `unetsharp evaluate` for every resampling."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.painter_network import painter
from support.two_networks import SQUARES, Changed, observed, painted_fold, same, step, swapped
from unetsharp.validate.assessment import Verdict, assess
from unetsharp.validate.bootstrap import RESAMPLES, Estimate, estimate, weightings
from unetsharp.validate.gates import MIN_NUCLEI, Gate, Limits
from unetsharp.validate.layers import layer_noise
from unetsharp.validate.markup import change, milliseconds, number, share
from unetsharp.validate.measures import STEP_QUANTITIES, pair_measures, step_measures
from unetsharp.validate.observing import WORST
from unetsharp.validate.tally import BINS, PairTally, Patch, StepTally, compare, count
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.quantization import place, quantize
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.runtimes.base import Runtime
from unetsharp_trainer.metrics.confusion import ConfusionMatrix
from unetsharp_trainer.metrics.panoptic import PanopticTable

NEOPLASTIC, BACKGROUND = 0, 5


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory):
    """Three patches, two of them with nuclei, that the reference gets right."""
    right = ("Colon", SQUARES, SQUARES)
    return painted_fold(tmp_path_factory.mktemp("three"), [right, right, ("Breast", [], [])])


def test_equal_networks_drift_by_nothing(three) -> None:
    result = assess(observed(three, step("copy", partial(Changed, same))), Limits())
    against = result.steps[1].against_reference
    assert against is not None
    assert against.pair["agreement"] == Estimate(value=1.0, low=1.0, high=1.0)
    assert against.pair["logit_snr"].value == math.inf
    differences = {e.value for e in against.differences.values() if not math.isnan(e.value)}
    assert differences == {0.0}
    assert all(gate.passed and gate.kept.value == 1.0 for gate in result.gates)
    assert result.worst == ()
    assert result.verdict is Verdict.PASSED


def test_a_swapped_class_is_seen_in_every_measure(three) -> None:
    result = assess(observed(three, step("swap", partial(Changed, swapped("Neoplastic", "Epithelial")))), Limits())
    reference, last = result.steps
    against = last.against_reference
    assert against is not None
    swapped_pixels, pixels = 2 * (32**2 + 16**2), 3 * 256**2
    assert against.pair["agreement"].value == pytest.approx(1 - swapped_pixels / pixels)
    assert against.pair["agreement_neoplastic"].value == 0.0
    assert against.pair["agreement_inflammatory"].value == 1.0
    assert reference.measures["dice_foreground"].value == last.measures["dice_foreground"].value == 1.0
    assert against.differences["dice_neoplastic"].value == -1.0
    assert against.kept["dice_class_mean"].value == pytest.approx(1 / 3)
    assert against.differences["bpq"].value == 0.0
    assert against.differences["pq_neoplastic"].value == pytest.approx(-1.0, abs=1e-5)
    assert against.differences["nuclei"].value == 0.0
    assert last.measures["nuclei_epithelial"].value == 2
    failed = {gate.name for gate in result.failed}
    assert failed == {"argmax agreement", "class-mean Dice"}
    assert result.verdict is Verdict.FAILED


def test_a_common_class_is_gated_by_itself(tmp_path: Path) -> None:
    many = [("Epithelial", 12 * row, 12 * column, 8) for row in range(15) for column in range(15)]
    few = [("Neoplastic", 200, 200, 40)]
    fold = painted_fold(tmp_path, [("Colon", many + few, many + few)])
    result = assess(observed(fold, step("swap", partial(Changed, swapped("Epithelial", "Dead")))), Limits())
    assert result.nuclei["Epithelial"] == 225 >= MIN_NUCLEI
    assert "epithelial Dice" in {gate.name for gate in result.failed}
    assert {u.name: u.reason for u in result.ungated}["neoplastic Dice"].startswith("1 true nuclei")


def test_each_step_is_compared_with_the_one_before(three) -> None:
    swap = partial(Changed, swapped("Neoplastic", "Epithelial"))
    result = assess(observed(three, step("first", swap), step("second", swap)), Limits())
    second = result.steps[2]
    assert second.against_previous is not None
    assert second.against_reference is not None
    assert (second.against_previous.earlier, second.against_reference.earlier) == ("first", "reference")
    assert second.against_previous.pair["agreement"].value == 1.0
    assert second.against_reference.pair["agreement"].value < 1.0


def test_what_cannot_run_is_listed_and_never_passes(three) -> None:
    def lacking() -> Runtime:
        raise MissingCapabilityError("no GPU: buy one")

    result = assess(observed(three, step("engine", lacking)), Limits())
    assert [(n.step.key, n.reason) for n in result.not_run] == [("engine", "no GPU: buy one")]
    assert result.verdict is Verdict.INCOMPLETE


def test_a_reference_that_cannot_run_ends_it(three) -> None:
    from support.two_networks import chain
    from unetsharp.validate.observing import observe

    def lacking() -> Runtime:
        raise MissingCapabilityError("no PyTorch")

    broken = chain()
    with pytest.raises(MissingCapabilityError, match="PyTorch"):
        observe(type(broken)(**{**vars(broken), "steps": (step("reference", lacking),)}), [])


def test_the_worst_patches_are_kept_worst_first(tmp_path: Path) -> None:
    squares = [[("Neoplastic", 8, 8, 10 + patch % 13)] for patch in range(14)]
    fold = painted_fold(tmp_path, [("Colon", said, said) for said in squares] + [("Colon", [], [])])
    seen = observed(fold, step("swap", partial(Changed, swapped("Neoplastic", "Dead")))).worst
    assert len(seen) == WORST
    sizes = [worst.changed for worst in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 22**2
    assert seen[0].patch.index == 12
    assert seen[0].deployed[8, 8] == 3


def test_calibration_error_is_the_gap_between_confidence_and_right(three) -> None:
    """Every pixel: confidence 0.9 in background. Two of four quarters are background in truth: right 0.5, gap 0.4."""
    target = np.full((64, 64), BACKGROUND, np.uint8)
    target[:, :32] = NEOPLASTIC
    logits = np.full((6, 64, 64), np.log(0.02), np.float32)
    logits[BACKGROUND] = np.log(0.9)
    said = count(patch_of(target), logits)
    measured = step_measures(StepTally.of([said]), ["Colon"], np.ones((1, 1)))
    assert measured["ece"][0] == pytest.approx(0.4, abs=1e-6)
    assert said.confidence[:, 0].sum() == 64 * 64
    assert said.confidence[int(np.ceil(0.9 * BINS)) - 1, 0] == 64 * 64


def test_logits_that_are_no_numbers_are_wrong_and_break_nothing() -> None:
    target = np.full((64, 64), BACKGROUND, np.uint8)
    right = np.zeros((6, 64, 64), np.float32)
    right[BACKGROUND] = 5.0
    broken = np.full_like(right, np.inf)
    broken[0] = np.nan
    tally = PairTally.of([compare(right, broken)])
    assert pair_measures(tally, np.ones((1, 1)))["agreement"][0] == 0.0
    assert count(patch_of(target), broken).pixels.counts[BACKGROUND, BACKGROUND] == 0


def patch_of(target: np.ndarray) -> Patch:
    """A patch without single nuclei."""
    return Patch(
        fold=1,
        index=0,
        tissue="Colon",
        image=np.zeros((*target.shape, 3), np.uint8),
        target=target,
        masks=np.zeros((*target.shape, 5), np.int64),
        nuclei=np.zeros(5, np.int64),
    )


def test_snr_is_ten_log_of_the_powers() -> None:
    logits = np.ones((6, 8, 8), np.float32)
    tally = PairTally.of([compare(logits, logits * np.float32(1.1)), compare(logits, logits * np.float32(0.9))])
    assert pair_measures(tally, np.ones((1, 2)))["logit_snr"][0] == pytest.approx(20.0, abs=1e-4)


@st.composite
def tallies(draw: st.DrawFn) -> StepTally:
    """What a network might have said of two to five patches."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 5))
    scores = rng.random((n, 6))
    scores[rng.random((n, 6)) < 0.3] = np.nan
    confidence = np.sort(rng.integers(0, 50, (n, BINS, 3)).astype(np.float64), axis=2)[..., ::-1]
    return StepTally(
        pixels=rng.integers(0, 9, (n, 6, 6)) * rng.integers(0, 2, (6, 1)),
        unknown=rng.integers(0, 3, (n, 6)),
        nuclei=rng.integers(0, 4, (n, 5)),
        bpq=scores[:, 0],
        class_pq=scores[:, 1:],
        confidence=confidence,
    )


@given(tallies(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_weighting_is_the_same_as_repeating_patches(tally: StepTally, data: st.DataObject) -> None:
    """Pixels by `ConfusionMatrix`, quality by `PanopticTable`, on a list in which patches come more than once."""
    n = len(tally.bpq)
    times = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    tissues = [("Colon", "Breast")[i % 2] for i in range(n)]
    places = np.repeat(np.arange(n), times)
    measured = step_measures(tally, tissues, np.array([times], np.float64))
    pixels = ConfusionMatrix(tally.pixels[places].sum(axis=0), tally.unknown[places].sum(axis=0))
    quality = PanopticTable([tissues[i] for i in places], tally.bpq[places].tolist(), tally.class_pq[places].tolist())
    expected = {
        "dice_foreground": pixels.foreground_dice(),
        "dice_class_mean": pixels.class_mean_dice(),
        "dice_connective": pixels.dice()[2],
        "iou_foreground": pixels.foreground_iou(),
        "iou_background": pixels.iou()[5],
        "nuclei": tally.nuclei[places].sum(),
        "bpq": quality.bpq(),
        "mpq": quality.mpq(),
        "pq_dead": quality.class_pq()[3],
    }
    for key, value in expected.items():
        np.testing.assert_allclose(measured[key][0], value, rtol=1e-12, err_msg=key)
    assert list(measured) == [quantity.key for quantity in STEP_QUANTITIES]


def test_draws_are_of_all_patches_and_repeat_themselves() -> None:
    weights = weightings(7)
    assert weights.shape == (1 + RESAMPLES, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, weightings(7))
    assert weights[1:].mean() == pytest.approx(1.0)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    weights = weightings(60)
    held = [
        estimate(weights @ sample / 60, 60).covers(0.3) for sample in (rng.random((200, 60)) < 0.3).astype(np.float64)
    ]
    assert 0.9 <= np.mean(held) <= 0.99


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_an_interval_lies_within_the_data_and_a_constant_has_none_to_speak_of(values: list[float]) -> None:
    n, sample = len(values), np.array(values)
    seen = estimate(weightings(n) @ sample / n, n)
    assert seen.low is not None
    assert seen.high is not None
    assert min(values) - 1e-9 <= seen.low <= seen.high <= max(values) + 1e-9
    constant = estimate(np.full(1 + RESAMPLES, 0.7), n)
    assert (constant.low, constant.high) == (0.7, 0.7)


def test_one_patch_and_undefined_values_have_no_interval() -> None:
    assert estimate(np.full(1 + RESAMPLES, 0.5), 1) == Estimate(value=0.5, low=None, high=None)
    rare = np.full(1 + RESAMPLES, np.nan)
    rare[: RESAMPLES // 2] = 0.5
    assert estimate(rare, 9).low is None


def gate(value: float, low: float | None, high: float | None, limit: float = 0.995) -> Gate:
    return Gate(step="s", name="g", kept=Estimate(value=value, low=low, high=high), limit=limit)


@pytest.mark.parametrize(
    ("seen", "passed", "words"),
    [
        (gate(0.9990, 0.9980, 0.9995), True, "Clear"),
        (gate(0.9900, 0.9880, 0.9940), False, "Clear"),
        (gate(0.9990, 0.9900, 1.0100), True, "across the limit"),
        (gate(0.9940, 0.9900, 0.9960), False, "across the limit"),
        (gate(0.9990, 0.9970, 1.0010), True, "tell from none"),
        (gate(1.0, 1.0, 1.0), True, "Not the least change"),
        (gate(0.9990, None, None), True, "Too few patches"),
        (gate(math.nan, None, None), False, "Too few patches"),
    ],
)
def test_gates_say_how_sure_they_are(seen: Gate, passed: bool, words: str) -> None:
    assert seen.passed is passed
    assert words in seen.certainty


def test_limits_are_each_precisions_own_unless_given() -> None:
    assert (Limits().of("int8").max_dice_drop, Limits().of("int8").min_agreement) == (0.005, 0.99)
    assert (Limits().of("fp16").max_dice_drop, Limits().of("fp32").min_agreement) == (0.001, 0.999)
    given_ = Limits(max_dice_drop=0.02)
    assert (given_.of("fp16").max_dice_drop, given_.of("fp16").min_agreement) == (0.02, 0.999)
    with pytest.raises(InputError, match="--min-agreement"):
        Limits(min_agreement=99.0)


def test_layers_of_equal_networks_are_silent_and_int8_ones_are_named(tmp_path: Path) -> None:
    import onnx

    path = painter(tmp_path / "m.onnx", hard=False)
    exact, model = path.read_bytes(), onnx.load(path)
    inputs = np.random.default_rng(0).random((1, 3, 256, 256), np.float32)
    silent = layer_noise(exact, exact, "fp32", [inputs])
    assert [layer.sqnr_db for layer in silent] == [math.inf] * 4
    placement = place(Graph(model))
    coarse = quantize(model, placement, dict.fromkeys(placement.tensors, 1.0)).SerializeToString()
    noisy = {layer.name: layer for layer in layer_noise(exact, coarse, "int8", [inputs])}
    assert {name: layer.precision for name, layer in noisy.items()} == {
        "first": "float",
        "spreading": "int8",
        "gathering": "int8",
        "head": "float",
    }
    assert noisy["first"].sqnr_db == math.inf
    # Uniform in 0 to 1, rounded to 127 steps: signal 1/3, noise (1/127)²/12. Rounding again adds nothing.
    assert noisy["spreading"].sqnr_db == pytest.approx(10 * math.log10(4 * 127**2), abs=0.02)
    assert noisy["gathering"].sqnr_db >= noisy["spreading"].sqnr_db


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (number(-0.00312), "−0.0031"),
        (number(math.nan), "–"),
        (number(math.inf, ".1f"), "∞"),
        (milliseconds(4361.2), "4,361"),
        (milliseconds(3.21987), "3.22"),
        (share(1.0), "100%"),
        (share(0.999999), "99.99%"),
        (share(0.995), "99.50%"),
        (change(Estimate(value=0.0, low=0.0, high=0.0)), '<span class="faint">0</span>'),
        (change(Estimate(value=0.01, low=None, high=None)), "+0.0100"),
        (change(Estimate(value=1e-7, low=-1e-7, high=1e-7)), '<span class="faint">≈ 0.0000</span>'),
        (change(Estimate(value=3.0, low=-1.0, high=5.0), "+,.0f"), '+3<span class="ends">−1 … +5</span>'),
    ],
)
def test_numbers_as_people_read_them(said: str, shown: str) -> None:
    assert said == shown
