"""Weights files: what is saved comes back, what is not ours is refused in one line, encoders take local files."""

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unetsharp_engines import __version__
from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_engines.files import sha256_of
from unetsharp_engines.model_info import METADATA_KEY, ModelInfo
from unetsharp_trainer import UNetSharp
from unetsharp_trainer.network import load_weights, save_weights

INFO = ModelInfo(name="tiny", encoder="resnet18", width=4, train_size=224, untaught=("Dead",))


@pytest.fixture(scope="module")
def model() -> UNetSharp:
    torch.manual_seed(0)
    return UNetSharp("resnet18", 4)


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, INFO)
    return path


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, and under each the same type and values, bit for bit."""
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


# save_weights, load_weights


def test_round_trip_is_exact(model, path):
    loaded, info = load_weights(path)
    assert not loaded.training
    assert info == dataclasses.replace(INFO, weights_sha256=sha256_of(path), tool_version=__version__)
    assert_equal(loaded.state_dict(), model.state_dict())


def test_equal_networks_are_equal_files(model, path, tmp_path):
    save_weights(tmp_path / "again.safetensors", model, INFO)
    assert sha256_of(tmp_path / "again.safetensors") == sha256_of(path)


def test_half_is_half_the_size_and_loads_as_float32(model, path, tmp_path):
    half = tmp_path / "half.safetensors"
    save_weights(half, model, INFO, half=True)
    assert half.stat().st_size < 0.51 * path.stat().st_size
    loaded, _ = load_weights(half)
    rounded = {name: t.half().float() if t.ndim > 1 else t for name, t in model.state_dict().items()}
    assert_equal(loaded.state_dict(), rounded)


def test_half_refuses_what_float16_cannot_hold(tmp_path):
    model = UNetSharp("resnet18", 4)
    model.head.weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(InputError, match=r"head\.weight holds 1e\+06"):
        save_weights(tmp_path / "half.safetensors", model, INFO, half=True)
    assert not list(tmp_path.iterdir())


def test_info_of_another_network_is_a_bug_and_writes_nothing(model, tmp_path):
    with pytest.raises(ValueError, match="resnet18 of width 4"):
        save_weights(tmp_path / "w.safetensors", model, dataclasses.replace(INFO, width=8))
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        load_weights(tmp_path / "absent.safetensors")
    one_line(error)


def test_truncated_file_at_every_kind_of_place(path):
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a whole safetensors file") as error:
            load_weights(path)
        one_line(error)


def test_a_file_of_another_kind(tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pytest.raises(InputError, match="not a whole safetensors file") as error:
        load_weights(picture)
    one_line(error)


def test_foreign_safetensors(path):
    save_file(load_file(path), path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="safetensors, but not unetsharp's") as error:
        load_weights(path)
    one_line(error)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head.bias": torch.zeros(7)}, r"head\.bias is \[7\], \[6\] was expected"),
        ({"more": torch.zeros(1)}, r"more is \[1\], absent was expected"),
        ({"head.bias": None}, r"head\.bias is absent, \[6\] was expected"),
    ],
)
def test_tensors_that_do_not_match_the_info_are_named(changed, message, path):
    tensors = {name: tensor for name, tensor in {**load_file(path), **changed}.items() if tensor is not None}
    save_file(tensors, path, metadata={METADATA_KEY: INFO.to_json()})
    with pytest.raises(InputError, match=message) as error:
        load_weights(path)
    one_line(error)


def test_unreadable_info(path):
    save_file(load_file(path), path, metadata={METADATA_KEY: "{"})
    with pytest.raises(InputError, match="metadata cannot be read") as error:
        load_weights(path)
    one_line(error)


# Encoder weights


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model("resnet18")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_encoder_takes_a_full_classifiers_file(kind, classifier, tmp_path):
    path = tmp_path / f"classifier.{'safetensors' if kind == 'safetensors' else 'pth'}"
    state = classifier.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "checkpoint" else state, path)
    model = UNetSharp("resnet18", 4, path)
    report = model.encoder_report
    assert report is not None
    assert report.unexpected == ("fc.bias", "fc.weight")
    assert report.missing == report.misshaped == ()
    assert set(report.matched) == model.encoder.state_dict().keys()
    assert str(report) == "encoder weights: 120 matched, 0 missing, 2 unexpected, 0 misshaped"
    assert_equal(model.encoder.state_dict(), {name: state[name] for name in report.matched})


def test_flattened_stage_names_are_found(tmp_path):
    """densenet's features.conv0 is features_conv0 in timm's feature extractor."""
    classifier = timm.create_model("densenet121")
    save_file(classifier.state_dict(), tmp_path / "densenet.safetensors")
    report = UNetSharp("densenet121", 4, tmp_path / "densenet.safetensors").encoder_report
    assert report is not None
    assert report.missing == report.misshaped == ()
    assert set(report.unexpected) == {"classifier.weight", "classifier.bias"}


def test_partly_fitting_file_is_accounted_for(classifier, tmp_path):
    state = classifier.state_dict()
    del state["bn1.weight"]
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    save_file(state, tmp_path / "partly.safetensors")
    report = UNetSharp("resnet18", 4, tmp_path / "partly.safetensors").encoder_report
    assert report is not None
    assert report.missing == ("bn1.weight",)
    assert report.misshaped == ("conv1.weight",)


def test_file_of_another_network_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"none of its 1 tensors fits .* a \[3\], the encoder e\.g\. conv1") as error:
        UNetSharp("resnet18", 4, tmp_path / "other.safetensors")
    one_line(error)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_hold_code_or_nothing_readable_are_refused(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    for name in ("code.pth", "numbers.pth", "noise.pth", "empty.pth", "noise.safetensors", "absent.pth"):
        with pytest.raises(InputError, match=name) as error:
            UNetSharp("resnet18", 4, tmp_path / name)
        one_line(error)
    assert "executed" not in capsys.readouterr().out


def test_timm_without_weights_for_an_encoder():
    with pytest.raises(InputError, match="timm has no weights for encoder 'resnetblur18'"):
        UNetSharp("resnetblur18", 4, "timm")


def test_offline_download_ends_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingCapabilityError, match="fb_swsl_ig1b_ft_in1k' are not cached on this machine") as error:
        UNetSharp("resnext101_32x4d", 4, "timm")
    one_line(error)
