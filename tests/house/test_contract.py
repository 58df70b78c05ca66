"""The contract holds together."""

import json

import numpy as np
import pytest

from unetsharp_engines import errors
from unetsharp_engines.contract import BACKGROUND, CLASSES, LABEL_OF_CHANNEL, MAX_SIDE, SIDE_MULTIPLE, TILE, class_named
from unetsharp_engines.errors import InputError
from unetsharp_engines.model_info import ModelInfo

INFO = ModelInfo(name="x", encoder="regnetx_002", width=16, train_size=256, untaught=("Dead",))


def test_channels_are_pannukes_and_labels_start_at_background() -> None:
    assert [c.name for c in CLASSES] == ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial", "Background"]
    assert [c.channel for c in CLASSES] == list(range(6))
    assert [c.label for c in CLASSES] == [(c.channel + 1) % 6 for c in CLASSES]
    assert BACKGROUND.label == 0
    assert np.array_equal(LABEL_OF_CHANNEL[[c.channel for c in CLASSES]], [c.label for c in CLASSES])
    assert len({c.color for c in CLASSES}) == 6


def test_the_tile_is_a_side_the_network_takes() -> None:
    assert TILE % SIDE_MULTIPLE == 0
    assert TILE <= MAX_SIDE


def test_classes_are_found_by_name() -> None:
    assert class_named("dead").channel == 3
    with pytest.raises(KeyError):
        class_named("nuclei")


def test_model_info_survives_json() -> None:
    assert ModelInfo.from_json(INFO.to_json(), source="x") == INFO


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"name": 1}', '{"name":' * 100_000),
        json.dumps({**json.loads(INFO.to_json()), "classes": ["Cell", "Background"]}),
    ],
    ids=str.__len__,
)
def test_foreign_metadata_is_refused_by_file_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^net\.onnx: "):
        ModelInfo.from_json(text, source="net.onnx")


def test_every_error_has_an_exit_code_and_is_in_the_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert name in (errors.__doc__ or "")
        if kind is not errors.UnetSharpError:
            assert kind.exit_code in {1, 2, 3}
