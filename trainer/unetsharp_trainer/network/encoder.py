"""The encoder: a timm backbone that gives five levels, strides 2 to 32."""

import difflib
from pathlib import Path
from typing import Any, Literal

import timm

from unetsharp_engines.errors import InputError, MissingCapabilityError
from unetsharp_trainer.network.encoder_weights import EncoderWeightsReport, load_encoder_file

__all__ = ["PAPER_ENCODER", "build_encoder"]

PAPER_ENCODER = "resnext101_32x4d"

_PAPER_TAG = "fb_swsl_ig1b_ft_in1k"
"""The paper's pretraining: semi-weakly supervised on a billion pictures, tuned on ImageNet (CC-BY-NC 4.0)."""

_REDUCTIONS = [2, 4, 8, 16, 32]


def build_encoder(name: str, weights: Literal["none", "timm"] | Path) -> tuple[Any, EncoderWeightsReport | None]:
    """Make timm's ``features_only`` backbone ``name``, a module: float [N, 3, H, W] → five levels, strides 2 to 32.

    For a weights file the report says what of it was used. Raises InputError for an unknown backbone, one with other
    strides or a fixed input size, an unfit file; MissingCapabilityError where weights cannot be downloaded.
    """
    if not timm.is_model(name):
        raise InputError(_unknown(name))
    encoder = _download(name) if weights == "timm" else _create(name)
    _require_levels(name, encoder)
    report = load_encoder_file(encoder, weights) if isinstance(weights, Path) else None
    return encoder, report


def _create(name: str, **arguments: Any) -> Any:
    """Create by timm; residual blocks start alive (``zero_init_last=False``) in the models that know the choice."""
    try:
        return timm.create_model(name, features_only=True, zero_init_last=False, **arguments)
    except TypeError as error:
        if "zero_init_last" not in str(error):
            raise
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(f"encoder {name!r} cannot give features level by level ({_first_line(error)})") from error
    return timm.create_model(name, features_only=True, **arguments)


def _download(name: str) -> Any:
    tagged = f"{name}.{_PAPER_TAG}" if name == PAPER_ENCODER else name
    if not timm.models.is_model_pretrained(tagged):
        raise InputError(
            f"timm has no weights for encoder {tagged!r}; train it from random ones: encoder weights 'none'"
        )
    try:
        return _create(tagged, pretrained=True)
    except OSError as error:  # huggingface_hub's and urllib's network errors are OSErrors
        raise MissingCapabilityError(
            f"the timm weights {tagged!r} are not cached on this machine and cannot be downloaded "
            f"({_first_line(error)}); download them elsewhere and give the file, or take random weights: 'none'"
        ) from error


def _require_levels(name: str, encoder: Any) -> None:
    reductions = encoder.feature_info.reduction()
    if reductions != _REDUCTIONS:
        raise InputError(f"encoder {name!r} has feature strides {reductions}; U-Net# needs {_REDUCTIONS}")
    if encoder.pretrained_cfg["fixed_input_size"]:
        size = encoder.pretrained_cfg["input_size"]
        raise InputError(
            f"encoder {name!r} takes only inputs of {size}; U-Net# needs one that takes any multiple of 32"
        )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the paper's is {PAPER_ENCODER}"
    return f"timm has no encoder {name!r}; {hint}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
