"""INT8: where it goes in the network, which magnitudes it holds, and what that costs each layer."""

from unetsharp_engines.quantization.calibration import Calibration, batch_size
from unetsharp_engines.quantization.cpu import place_for_cpu
from unetsharp_engines.quantization.equalization import Equalization
from unetsharp_engines.quantization.histogram import MagnitudeHistogram
from unetsharp_engines.quantization.insertion import quantize
from unetsharp_engines.quantization.placement import Placement, place
from unetsharp_engines.quantization.sensitivity import Sensitivity
from unetsharp_engines.quantization.thresholds import METHODS, threshold

__all__ = [
    "METHODS",
    "Calibration",
    "Equalization",
    "MagnitudeHistogram",
    "Placement",
    "Sensitivity",
    "batch_size",
    "place",
    "place_for_cpu",
    "quantize",
    "threshold",
]
