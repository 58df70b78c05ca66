"""``--rebuild``: an engine for this machine from a bundle's own ONNX, kept in the bundle."""

from unetsharp.build.bundle import Bundle, open_bundle
from unetsharp.build.pipeline import BuildOptions, build_bundle
from unetsharp.cli.output import Output

__all__ = ["rebuilt"]


def rebuilt(bundle: Bundle, runtime: str, output: Output) -> Bundle:
    """Build an engine for ``runtime`` here, add it to ``bundle`` where it lies, and open the result with equal trust.

    It takes the batches that the bundle's engines took. Raises InputError and MissingCapabilityError as
    `unetsharp.build.pipeline.build_bundle` does.
    """
    options = BuildOptions(runtime=runtime, add=True, batch=_batch(bundle))
    build_bundle(bundle.root, bundle.root, options, output)
    return open_bundle(bundle.root, trust=bundle.trusts_foreign)


def _batch(bundle: Bundle) -> tuple[int, int, int]:
    if not bundle.manifest.engines:
        return BuildOptions.batch
    profile = bundle.manifest.engines[0].profile
    return profile["min"][0], profile["opt"][0], profile["max"][0]
