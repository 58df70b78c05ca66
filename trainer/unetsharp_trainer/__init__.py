"""What makes weights: the network, PanNuke, losses, metrics, the training loop. Torch is imported where it runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetsharp_trainer.network import UNetSharp

__all__ = ["UNetSharp"]


def __getattr__(name: str) -> Any:
    if name != "UNetSharp":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from unetsharp_trainer.network import UNetSharp
    except ModuleNotFoundError as error:
        from unetsharp_engines.errors import MissingCapabilityError

        raise MissingCapabilityError(
            f"the network needs {error.name}, which is not installed here: pip install 'unetsharp[train]'"
        ) from error
    return UNetSharp
