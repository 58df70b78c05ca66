"""``validate`` as a function: chain, one pass over the patches, conclusions."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unetsharp.build.bundle import Bundle, open_bundle
from unetsharp.build.choice import RUNTIMES
from unetsharp.cli.output import Output
from unetsharp.evaluate.run import stain_as_trained
from unetsharp.model_files import ModelKind, kind_of
from unetsharp.quantize.selection import candidates, select
from unetsharp.validate.assessment import Assessment, assess
from unetsharp.validate.chain import Chain, Step, chain_of
from unetsharp.validate.gates import Limits
from unetsharp.validate.layers import LayerNoise, layer_noise
from unetsharp.validate.observing import Observed, observe
from unetsharp.validate.tally import Patch, read_patch
from unetsharp_engines.errors import InputError
from unetsharp_engines.runtimes.base import network_input
from unetsharp_trainer.data.pannuke import Fold

__all__ = ["ValidateSettings", "Validation", "validate_bundle"]

_PROBED = 8
"""Patches on which the noise of layers is measured: sums over all pixels, so few suffice."""


@dataclass(frozen=True, kw_only=True)
class ValidateSettings:
    """What to validate on, and what may be lost."""

    runtime: str = "auto"
    images: int | None = None
    """Patches, chosen to show every tissue and class; None for all of the fold."""
    trust: bool = False
    """The user's word that engines that others built may run: they are code."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check."""
        if self.runtime not in RUNTIMES:
            raise InputError(f"--runtime {self.runtime}: wanted one of {', '.join(RUNTIMES)}")
        if self.images is not None and self.images < 1:
            raise InputError(f"--images {self.images}: wanted at least 1, such as 200")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What was validated, and what came of it."""

    bundle: Bundle
    chain: Chain
    fold: int
    """Number of the fold validated on."""
    indices: tuple[int, ...]
    """Of the patches in it."""
    data_sha256: str
    """Of the SHA-256 of each one's image and truth, in order."""
    assessment: Assessment
    layers: tuple[LayerNoise, ...]
    """Of the last ONNX of the chain that is not float, against the last float one; empty where all are float."""


def validate_bundle(
    root: Path,
    reference: Path,
    fold: Fold,
    settings: ValidateSettings,
    output: Output,
    unfinished: Path | None = None,
) -> Validation:
    """Run every step from ``reference`` to the bundle ``root`` on patches of ``fold`` and draw the conclusions.

    What each patch showed is kept in the folder ``unfinished``, if given, so that a run that is stopped can go on:
    remove it once the conclusions are safe. Raises InputError for a bundle, reference or runtime that do not fit
    together, and where the reference finds no nucleus, since no share of nothing can be lost; MissingCapabilityError
    where the reference cannot run.
    """
    bundle = _opened(root)
    output.say(f"Making the steps from {reference} to {root}")
    chain = chain_of(bundle, reference, settings.runtime, trust=settings.trust)
    for step in chain.steps:
        output.detail(f"  {step.title}: {step.precision}, {step.size / 1e6:.1f} MB, SHA-256 {step.sha256[:12]}…")
    indices = _chosen(fold, settings, output)
    layers = _layers(chain, fold, indices, output)
    observed, data_sha256 = _observed(chain, fold, indices, output, unfinished)
    for lacking in observed.not_run:
        output.warn(f"{lacking.step.title}: NOT RUN. {lacking.reason}")
    output.say("Drawing conclusions")
    assessment = assess(observed, settings.limits)
    _check_finds_nuclei(assessment, fold)
    return Validation(
        bundle=bundle,
        chain=chain,
        fold=fold.number,
        indices=tuple(indices),
        data_sha256=data_sha256,
        assessment=assessment,
        layers=layers,
    )


def _observed(
    chain: Chain, fold: Fold, indices: Sequence[int], output: Output, unfinished: Path | None
) -> tuple[Observed, str]:
    """What the patches showed, and `Validation.data_sha256`."""
    digest = hashlib.sha256()

    def read(index: int) -> Patch:
        patch = read_patch(fold, index, chain.sides)
        digest.update(bytes.fromhex(patch.sha256))
        return patch

    if unfinished is not None and unfinished.is_dir():
        output.say(f"Taking up what an earlier run left in {unfinished}, where it is of the same networks")
    with output.progress("Validating", total=len(indices), unit="patches") as advance:
        observed = observe(chain, [partial(read, index) for index in indices], advance, unfinished)
    return observed, digest.hexdigest()


def _opened(root: Path) -> Bundle:
    if (kind := kind_of(root)) is ModelKind.BUNDLE:
        return open_bundle(root)
    build = "unetsharp build-engine {} -o bundle"
    wanted = {
        ModelKind.WEIGHTS: f"make one: unetsharp export {root} -o model.onnx, then {build.format('model.onnx')}",
        ModelKind.ONNX: f"make one: {build.format(root)}",
        ModelKind.ENGINE: "give the bundle it came from",
    }
    raise InputError(f"{root}: {kind.named}, no bundle; {wanted[kind]}")


def _chosen(fold: Fold, settings: ValidateSettings, output: Output) -> list[int]:
    if settings.images is None or settings.images >= len(fold):
        return list(range(len(fold)))
    with output.progress(f"Choosing in fold {fold.number}", total=None, unit="patches") as advance:
        return [patch.index for patch in select(fold, candidates(fold, advance), settings.images).patches]


def _layers(chain: Chain, fold: Fold, indices: Sequence[int], output: Output) -> tuple[LayerNoise, ...]:
    if (pair := _lossy_pair(chain.steps)) is None:
        return ()
    (exact, lossy, precision), probed = pair, indices[:_PROBED]

    def inputs() -> Iterator[npt.NDArray[np.float32]]:
        plan, (height, width) = stain_as_trained(chain.info), chain.sides
        for index in probed:
            yield network_input(fold.image(index)[None, :height, :width], plan)
            advance(1)

    with output.progress("Measuring layers", total=len(probed), unit="patches") as advance:
        return tuple(layer_noise(exact, lossy, precision, inputs()))


def _lossy_pair(steps: Sequence[Step]) -> tuple[bytes, bytes, str] | None:
    """The last float ONNX and the last one that is not, with its precision, if there are both."""
    exact = [step.onnx for step in steps if step.onnx is not None and step.precision == "fp32"]
    lossy = [(step.onnx, step.precision) for step in steps if step.onnx is not None and step.precision != "fp32"]
    return (exact[-1], *lossy[-1]) if exact and lossy else None


def _check_finds_nuclei(assessment: Assessment, fold: Fold) -> None:
    dice = assessment.steps[0].measures["dice_foreground"].value
    if not dice > 0.0:
        raise InputError(
            f"{fold.files.images.path.parent}: on {assessment.patches} patches the reference's foreground Dice is "
            f"{dice:g}, so what is lost of it means nothing; give trained weights and labelled patches"
        )
