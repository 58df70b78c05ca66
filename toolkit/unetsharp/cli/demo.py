"""``unetsharp demo``: the whole path once, on a bundled picture."""

from pathlib import Path
from typing import Annotated

import typer

from unetsharp.cli.output import Output


def demo(
    *,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for everything it makes.")] = Path(
        "demo-out"
    ),
    output: Output,
) -> None:
    """Run the whole path on a bundled crop of a real slide, and write a page to look at.

    Exports the shipped weights, builds TensorRT-RTX engines, proves what each step changed, finds the nuclei, by the
    commands it prints. What this machine cannot do is skipped and named.

    \b
    Example:
      unetsharp demo --out demo-out
    """
    import time

    from unetsharp.demo.page import write_page
    from unetsharp.demo.steps import run_steps

    start = time.perf_counter()
    steps = run_steps(out, output)
    page = write_page(out, steps)
    seconds = time.perf_counter() - start
    ran = [step.title for step in steps if step.result]
    skipped = {step.title: step.skipped for step in steps if step.skipped}
    output.result(
        {"page": str(page), "ran": ran, "skipped": skipped, "seconds": round(seconds, 1)},
        f"Done in {seconds:.0f} s. Open {page}",
    )
