"""U-Net#: encoder, ASPP, gated full-scale decoder, and its weights files. The one place beside training with torch."""

from unetsharp_trainer.network.encoder_weights import EncoderWeightsReport
from unetsharp_trainer.network.unetsharp import UNetSharp
from unetsharp_trainer.network.weights import load_weights, save_weights

__all__ = ["EncoderWeightsReport", "UNetSharp", "load_weights", "save_weights"]
