"""Every rewrite by name, and which of them each runtime is given."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from unetsharp_engines.rewrites.batchnorm import fold_into_consumers, fold_into_producer
from unetsharp_engines.rewrites.channels import drop_constant_channels
from unetsharp_engines.rewrites.dilation import drop_taps_in_padding
from unetsharp_engines.rewrites.gates import merge_gates
from unetsharp_engines.rewrites.graph import Graph
from unetsharp_engines.rewrites.groups import widen_groups
from unetsharp_engines.rewrites.low_resolution import (
    deep_at_low_resolution,
    head_at_low_resolution,
    head_with_resized_taps,
    tailless_head,
    taps_as_computed,
)
from unetsharp_engines.rewrites.mish import spell_mish_by_exp
from unetsharp_engines.rewrites.one_kernel import deep_in_one_kernel
from unetsharp_engines.rewrites.outcome import Outcome
from unetsharp_engines.rewrites.pools import chain_pools
from unetsharp_engines.rewrites.shifts import carry_shifts

__all__ = ["DEFAULT", "NEEDING_PLUGIN", "PASSES", "PORTABLE", "TAIL_LESS", "TYPED"]

PASSES: Mapping[str, Callable[[Graph], Outcome]] = MappingProxyType(
    {
        "fold-batchnorm-back": fold_into_producer,
        "drop-constant-channels": drop_constant_channels,
        "aspp-centre-taps": drop_taps_in_padding,
        "head-low-resolution": head_at_low_resolution,
        "head-resized": head_with_resized_taps,
        "tailless-head": tailless_head,
        "tailless-head-56": partial(tailless_head, multiple=8),
        "deep-low-resolution": deep_at_low_resolution,
        "deep-one-kernel": deep_in_one_kernel,
        "fold-batchnorm-forward": fold_into_consumers,
        "carry-shifts": carry_shifts,
        "chain-pools": chain_pools,
        "merge-gates": merge_gates,
        "groups-of-32": partial(widen_groups, channels=32),
        "groups-of-64": partial(widen_groups, channels=64),
        "groups-of-128": partial(widen_groups, channels=128),
        "mish-by-exp": spell_mish_by_exp,
        "taps-as-computed": taps_as_computed,
    }
)
"""All passes; the order in which a set of them is best run."""

NEEDING_PLUGIN: frozenset[str] = frozenset({"deep-one-kernel"})
"""Passes whose result only a TensorRT that takes plugins runs, from 10.9 on; in no default set, since not measured."""

PORTABLE: tuple[str, ...] = (
    "fold-batchnorm-back",
    "drop-constant-channels",
    "aspp-centre-taps",
    "head-low-resolution",
    "fold-batchnorm-forward",
    "chain-pools",
)
"""What `unetsharp export` applies: less arithmetic and fewer bytes for every runtime."""

TAIL_LESS: tuple[str, ...] = tuple("tailless-head-56" if n == "head-low-resolution" else n for n in PORTABLE)
"""What `unetsharp export --tail-less` applies: `PORTABLE`, but the network ends at the head's taps."""

_WITH_DEEP = tuple(name for name in PASSES if name in (*PORTABLE, "deep-low-resolution"))

DEFAULT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"onnxruntime": (*_WITH_DEEP, "mish-by-exp"), "tensorrt": PORTABLE, "tensorrt-rtx": _WITH_DEEP}
)
"""Per runtime, the set that serves it best. For onnxruntime it is the one that measured fastest
(``benchmarks/rewrites.py``); for tensorrt-rtx the one whose engine moves the fewest bytes with the least arithmetic
(``benchmarks/rtx_layers.py``), since no GPU that it builds for was at hand; tensorrt's is not measured yet."""

TYPED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tensorrt": ("taps-as-computed",), "tensorrt-rtx": ("mish-by-exp", "taps-as-computed")}
)
"""Per runtime, what is done to a network that an engine is built from once its tensors have their types."""
