"""Every rewrite, alone and together, on whole networks: the same function, to the last digits of float64."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.networks import evaluated, exported, in_float64, random_network
from unetsharp_engines.contract import TAPS_NAME
from unetsharp_engines.errors import InputError
from unetsharp_engines.rewrites import (
    DEFAULT,
    PASSES,
    PORTABLE,
    REWRITES_KEY,
    TAIL_KEY,
    HeadTail,
    RewriteReport,
    finish,
    rewrite,
)

EXACT = 1e-9
TAILLESS = ("tailless-head", "tailless-head-56")
KEEPING_THE_OUTPUT = [name for name in PASSES if name not in TAILLESS]

NETWORKS = {  # encoder, width, image height and width; timm's test_* are small networks of the usual makes
    "plain": ("test_resnet", 4, 64, 96),
    "wide": ("test_resnet", 24, 96, 32),
    "grouped": ("test_byobnet", 6, 64, 64),
    "depthwise": ("test_efficientnet", 5, 224, 160),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def network(name: str, folded: bool = True) -> onnx.ModelProto:
    encoder, width, *sides = NETWORKS[name]
    return in_float64(exported(random_network(encoder, width), *sides, folded=folded))


@functools.cache
def image(name: str) -> np.ndarray:
    return np.random.default_rng(5).random((2, 3, *NETWORKS[name][2:]))


@functools.cache
def plain_output(name: str, folded: bool = True) -> np.ndarray:
    return evaluated(network(name, folded), image(name))


def sites(report: RewriteReport) -> dict[str, int]:
    return {done.name: len(done.sites) for done in report.passes}


def properties(model: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}


def test_the_evaluator_agrees_with_pytorch():
    net = random_network("test_resnet", 4)
    with torch.no_grad():
        wanted = net.double()(torch.from_numpy(image("plain"))).numpy()
    model = in_float64(exported(net.float(), *NETWORKS["plain"][2:], folded=False))
    np.testing.assert_allclose(evaluated(model, image("plain")), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("folded", [True, False], ids=["batchnorms folded by the exporter", "batchnorms kept"])
@pytest.mark.parametrize("name", KEEPING_THE_OUTPUT)
def test_each_alone_is_exact(name: str, folded: bool):
    rewritten, report = rewrite(network("plain", folded), [name])
    onnx.checker.check_model(rewritten, full_check=True)
    (done,) = report.passes
    assert done.sites or done.note
    difference = np.abs(evaluated(rewritten, image("plain")) - plain_output("plain", folded)).max()
    assert difference <= EXACT


@pytest.mark.parametrize("which", NETWORKS)
def test_all_together_are_exact(which: str):
    rewritten, report = rewrite(network(which), KEEPING_THE_OUTPUT)
    onnx.checker.check_model(rewritten, full_check=True)
    assert sites(report)["head-low-resolution"] == 1
    assert sites(report)["merge-gates"] == 10
    assert np.abs(evaluated(rewritten, image(which)) - plain_output(which)).max() <= EXACT
    assert np.abs(plain_output(which)).max() > 0.1


@pytest.mark.parametrize("runtime", DEFAULT)
def test_defaults_act_where_the_network_offers_it(runtime: str):
    _, report = rewrite(network("plain", folded=False), DEFAULT[runtime])
    found = sites(report)
    assert found["fold-batchnorm-back"] == 15 + 30  # the encoder's, three in each gate
    assert found["aspp-centre-taps"] == 3  # at 2×3 all dilations, at 8×8 all but the first
    assert found["head-low-resolution"] == 1
    deep_too = runtime != "tensorrt"
    assert found.get("deep-low-resolution", 0) == 5 * deep_too
    assert found["fold-batchnorm-forward"] == 5 + 1 + 2 * deep_too  # ASPP's branches, d1, and d2, d4 if none upsamples


def test_single_precision_runs_and_agrees():
    model = exported(random_network("test_resnet", 16), 128, 160)
    rewritten, report = rewrite(model, DEFAULT["onnxruntime"])
    x = np.random.default_rng(2).random((3, 3, 128, 160)).astype(np.float32)
    plain, fast = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"image": x})[0] for m in (model, rewritten)
    )
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-5)
    assert report.after.bytes > 0


@pytest.mark.parametrize(("name", "channels"), [("tailless-head", 54), ("tailless-head-56", 56)])
def test_tailless_network_is_finished_exactly(name: str, channels: int):
    rewritten, _ = rewrite(network("depthwise"), ["fold-batchnorm-back", name, "fold-batchnorm-forward"])
    onnx.checker.check_model(rewritten, full_check=True)
    assert [o.name for o in rewritten.graph.output] == [TAPS_NAME]
    tail = HeadTail.from_json(properties(rewritten)[TAIL_KEY], source="it")
    assert tail == HeadTail(classes=6, factor=2, channels=channels)
    taps = evaluated(rewritten, image("depthwise"))
    assert taps.shape == (2, channels, 112, 80)
    assert np.abs(finish(taps, tail) - plain_output("depthwise")).max() <= EXACT


def test_single_precision_tail_is_finished_in_single_precision():
    taps = np.random.default_rng(0).normal(size=(1, 54, 8, 8)).astype(np.float32)
    logits = finish(taps, HeadTail(classes=6, factor=2, channels=54))
    assert logits.dtype == np.float32
    assert logits.shape == (1, 6, 16, 16)


def test_account_travels_in_the_metadata_and_grows():
    first, report = rewrite(network("plain"), PORTABLE)
    assert RewriteReport.from_json(properties(first)[REWRITES_KEY]) == report
    second, more = rewrite(first, ["mish-by-exp"])
    assert [done.name for done in more.passes] == [*PORTABLE, "mish-by-exp"]
    assert more.before == report.before
    assert np.abs(evaluated(second, image("plain")) - plain_output("plain")).max() <= EXACT


def test_savings_add_up():
    _, report = rewrite(network("wide"), KEEPING_THE_OUTPUT)
    assert report.before.macs - report.after.macs == sum(done.macs_saved for done in report.passes)
    assert report.before.bytes - report.after.bytes == sum(done.bytes_saved for done in report.passes)
    saved = {done.name: done for done in report.passes}
    assert saved["deep-low-resolution"].macs_saved > 0
    assert saved["fold-batchnorm-forward"].bytes_saved > 0
    assert saved["head-low-resolution"].bytes_saved > 0


def test_a_second_time_there_is_nothing_to_do():
    once, _ = rewrite(network("plain", folded=False), DEFAULT["onnxruntime"])
    _, report = rewrite(once, DEFAULT["onnxruntime"])
    again = report.passes[len(DEFAULT["onnxruntime"]) :]
    assert [done.sites for done in again] == [()] * len(again)
    assert all(done.note for done in again)


def test_sizes_for_which_it_is_exact_are_told():
    _, report = rewrite(network("plain"), ["aspp-centre-taps"])
    assert (report.max_height, report.max_width) == (6 * 32, 6 * 32)
    encoder = random_network("test_resnet", 4)
    _, larger = rewrite(exported(encoder, 224, 416), ["aspp-centre-taps"])
    assert (larger.max_height, larger.max_width) == (12 * 32, 18 * 32)  # d = 12 still reaches sideways in 13 columns


def test_the_model_given_is_left_alone():
    model = network("plain")
    before = model.SerializeToString()
    rewrite(model, DEFAULT["onnxruntime"])
    assert model.SerializeToString() == before


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"no rewrite is called 'r2'; there are fold-batchnorm-back, "):
        rewrite(network("plain"), ["r2"])
    free = onnx.ModelProto()
    free.CopyFrom(network("plain"))
    for side in (2, 3):
        free.graph.input[0].type.tensor_type.shape.dim[side].dim_param = f"side{side}"
    with pytest.raises(InputError, match="fixed height and width"):
        rewrite(free)
    with pytest.raises(InputError, match=r"it: its unetsharp.tail metadata"):
        HeadTail.from_json('{"classes": 6}', source="it")
    with pytest.raises(InputError, match=r"it: its unetsharp.tail metadata is HeadTail\(classes=6, .*which no network"):
        HeadTail.from_json('{"classes": 6, "factor": 2, "channels": 53}', source="it")
