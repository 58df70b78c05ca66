"""``unetsharp doctor``: what this machine can do."""

from unetsharp.cli.output import Output, Verbosity


def doctor(*, output: Output) -> None:
    """Say what this machine can do, and for what is missing, the command that installs it.

    With -v PyTorch is loaded too (seconds), to see whether it finds the GPU. Ends with 0
    whatever it finds. Which TensorRT takes a network is told by `unetsharp inspect model.onnx`.

    \b
    Example:
      unetsharp doctor
    """
    from unetsharp.diagnosis import diagnose
    from unetsharp.diagnosis.tables import tables_of

    facts = diagnose(load_torch=output.verbosity is Verbosity.VERBOSE)
    output.result(facts, tables_of(facts))
