"""What TensorRT says of an engine's layers: precision, tactic, tensors.

Only TensorRT itself can tell, and only on a machine that runs the engine. So it is asked once, when the engine is
built, and its answer is kept in the bundle, for `unetsharp.inspection.inspector_json` to read anywhere. TensorRT-RTX
need not be asked: its engines tell their layers themselves.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from unetsharp.build.builder import recording_log, started
from unetsharp.build.flavours import Loaded
from unetsharp_engines.contract import INPUT_NAME
from unetsharp_engines.errors import InputError

if TYPE_CHECKING:
    from unetsharp_engines.tensorrt_api import ICudaEngine, IExecutionContext

__all__ = ["ask_inspector"]


def ask_inspector(loaded: Loaded, engine: bytes, tell: Callable[[str], None], *, host_code: bool = False) -> bytes:
    """The JSON of TensorRT's engine inspector, all layers of ``engine`` for the batch that it is fastest at.

    **It loads the engine, which is code that runs with your rights**; version-compatible ones bring ``host_code``.
    Warnings go to ``tell``. Raises InputError, in one line, where this TensorRT does not load it or says nothing,
    MissingCapabilityError where TensorRT itself does not start.
    """
    log = recording_log(loaded.trt, tell)
    runtime = started(loaded, loaded.trt.Runtime, log)  # has to outlive what comes of it
    if host_code:
        runtime.engine_host_code_allowed = True
    opened = runtime.deserialize_cuda_engine(engine)
    context = None if opened is None else opened.create_execution_context()
    if opened is None or context is None:
        raise InputError(f"{loaded.label} cannot load the engine: {log.last_error or 'it gave no reason'}")
    _set_best_shape(opened, context)
    inspector = opened.create_engine_inspector()
    inspector.execution_context = context  # without it, sizes that depend on the batch are not told
    return _checked(inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON), loaded)


def _set_best_shape(opened: "ICudaEngine", context: "IExecutionContext") -> None:
    """Let the input be as the profile is fastest at; an engine that is not ours keeps what it has."""
    if INPUT_NAME in [opened.get_tensor_name(index) for index in range(opened.num_io_tensors)]:
        _, best, _ = opened.get_tensor_profile_shape(INPUT_NAME, 0)
        context.set_input_shape(INPUT_NAME, best)


def _checked(text: str, loaded: Loaded) -> bytes:
    try:
        told = json.loads(text, strict=False)  # it separates with characters that JSON wants escaped
        if not told["Layers"]:
            raise ValueError("no layers")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{loaded.label} does not tell the engine's layers ({error!r})") from error
    return json.dumps(told, indent=1).encode()
