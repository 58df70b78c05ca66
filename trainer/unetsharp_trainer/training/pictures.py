"""The page of pictures that ends a run: image, truth and prediction side by side, as in the paper's Figure 5."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unetsharp_engines.contract import CLASSES, NUCLEUS_CLASSES
from unetsharp_engines.files import replacing
from unetsharp_engines.model_info import ModelInfo
from unetsharp_trainer.data.pannuke import UNKNOWN
from unetsharp_trainer.training.sampling import Bytes, PatchSource
from unetsharp_trainer.training.validation import predict

__all__ = ["colored", "write_page"]

PATCHES = 12
UNKNOWN_COLOR = (160, 160, 160)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}: image, truth, prediction</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 860px; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
td, th {{ padding: 2px 4px; font-weight: 500 }}
img {{ display: block; width: 256px; max-width: 100% }}
.key span {{ display: inline-block; margin-right: 1rem }}
.key i {{ display: inline-block; width: .9em; height: .9em; margin-right: .35em; border: 1px solid #888 }}
</style>
<h1>{name}</h1>
<p>Patches spread evenly over the {part} folds, as the network saw them (stain normalization: {stain}).{untaught}</p>
<p class="key">{key}</p>
<table><tr><th>Image</th><th>Truth</th><th>Prediction</th></tr>
{rows}
</table></html>
"""


def write_page(
    path: Path,
    model: nn.Module,
    info: ModelInfo,
    sources: Sequence[PatchSource],
    part: str,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Write one self-contained HTML file with `PATCHES` rows from ``sources``; ``model`` is in eval mode on ``device``.

    ``part`` says in words which folds these are.
    """
    images, targets = _spread(sources, PATCHES)
    predicted = predict(model, images, device, precision).argmax(1).cpu().numpy().astype(np.uint8)
    rows = [
        f"<tr><td>{_img(image)}</td><td>{_img(colored(target))}</td><td>{_img(colored(guess))}</td></tr>"
        for image, target, guess in zip(images, targets, predicted, strict=True)
    ]
    page = _PAGE.format(
        name=html.escape(info.name),
        part=part,
        stain=info.stain,
        untaught=f" Its training data showed no {' and no '.join(info.untaught)}." if info.untaught else "",
        key=_key(bool((targets == UNKNOWN).any())),
        rows="\n".join(rows),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def colored(channels: Bytes) -> Bytes:
    """Draw a class map uint8 [H, W] (channel 0 to 5, or 255 for a nucleus of unknown class) as RGB [H, W, 3]."""
    palette = np.zeros((UNKNOWN + 1, 3), dtype=np.uint8)
    palette[: len(CLASSES)] = [c.color for c in CLASSES]
    palette[UNKNOWN] = UNKNOWN_COLOR
    return palette[channels]


def _spread(sources: Sequence[PatchSource], count: int) -> tuple[Bytes, Bytes]:
    places = [(source, index) for source in sources for index in range(len(source.images))]
    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))]
    images = np.stack([source.images[index] for source, index in chosen])
    return images, np.stack([source.targets[index] for source, index in chosen])


def _img(pixels: Bytes) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _key(unknown: bool) -> str:
    entries = [(c.name, c.color) for c in NUCLEUS_CLASSES] + [("Nucleus of unknown class", UNKNOWN_COLOR)] * unknown
    return "".join(f'<span><i style="background: rgb{color}"></i>{name}</span>' for name, color in entries)
