"""From a PyTorch module to a plain ONNX graph.

The exporter is PyTorch's TorchScript one, on purpose: it writes opset 17, which every TensorRT from 8.6 on parses, and
spells Mish out as Softplus, Tanh, Mul, which TensorRT fuses into the convolution. The newer one (torch.export) has no
opset below 18, writes the Mish operator and fails to convert that down.
"""

import io
import warnings
from typing import TYPE_CHECKING, Any

from unetsharp_engines.contract import INPUT_NAME, OUTPUT_NAME
from unetsharp_engines.errors import MissingCapabilityError

if TYPE_CHECKING:
    import onnx

    from unetsharp_trainer.network import UNetSharp

__all__ = ["BATCH_AXIS", "trace"]

BATCH_AXIS = "N"
"""Name of the one dynamic axis, the batch."""


def trace(network: "UNetSharp", *, size: int, opset: int) -> "onnx.ModelProto":
    """``network``, in evaluation mode on the CPU, as a checked, simplified ONNX graph in float32.

    Input float32 [N, 3, size, size], output float32 [N, 6, size, size], named as the contract says; N is free. The
    batch norms that directly follow a convolution are folded into it. Raises MissingCapabilityError without onnxsim.
    """
    import onnx

    try:
        import onnxsim
    except ModuleNotFoundError as error:
        raise MissingCapabilityError(f"export needs {error.name}: pip install 'unetsharp[export]'") from error
    model = onnx.load_model_from_string(_exported(network, size, opset))
    simplified: onnx.ModelProto = onnxsim.simplify(model)[0]
    onnx.checker.check_model(simplified, full_check=True)
    return simplified


def _exported(network: "UNetSharp", size: int, opset: int) -> bytes:
    import torch

    class Logits(torch.nn.Module):
        """Calls the network past its check of the sides, which a trace cannot hold."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network.logits(image)

    file: Any = io.BytesIO()  # annotated as a path only; this exporter takes both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of this exporter; see the module's docstring
        torch.onnx.export(
            Logits().eval(),
            (torch.zeros(2, 3, size, size),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_axes={INPUT_NAME: {0: BATCH_AXIS}, OUTPUT_NAME: {0: BATCH_AXIS}},
        )
    return bytes(file.getvalue())
