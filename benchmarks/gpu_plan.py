"""The plan of a run on a GPU: which steps, in order of worth, and which of them may run side by side."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from end_to_end import CHAIN_BATCHES
from gpu_site import (
    ASSETS,
    BENCHMARKS,
    ENGINES,
    EXPORT,
    NETWORK,
    NETWORK_ON_GPU,
    ON_GPU,
    TOOLKIT,
    TRAINER,
    Site,
    pytest,
    script,
    user_command,
)
from probe import Python
from rewrites_tensorrt import BATCHES, EAGER, INT8, ONE_KERNEL, compiled
from stepwise import Lane, Step, Wave

__all__ = ["FIRST", "FURTHER", "plan"]

FIRST = ("tail-less", "plain")
"""Engines that every bar on engines needs."""
FURTHER = (
    INT8,
    "tail-less-deep",
    ONE_KERNEL,
    "tail-less-carry-shifts",
    "tail-less-groups-of-64",
    "tail-less-mish-by-exp",
    "head-resized",
    "portable",
    "tail-less-shifts-64",
    "tail-less-merge-gates",
    "only-head-low-resolution",
    "only-tailless-head-56",
    "only-fold-batchnorm-forward",
    "only-chain-pools",
    "only-aspp-centre-taps",
    "only-merge-gates",
    "tail-less-groups-of-32",
    "tail-less-groups-of-128",
)
"""Engines that tell what each rewrite is worth, and INT8, in the order in which they are built."""
PATCHES = Path("labelled", "Fold 3", "images", "fold3", "images.npy")


def plan(site: Site) -> list[Wave]:
    """All steps, what is worth most first; what is measured is alone, or takes turns with its partner."""
    return [
        Wave(lanes=[kernels_are_right(site), prepares(site)]),
        Wave(lanes=[[kernels_are_fast(site)]]),
        Wave(lanes=[builds_first(site), compiles(site), prepares_further(site)], leaves_s=600),
        race_of_engines(site, "first", FIRST, ("eager", "reduce-overhead")),
        Wave(lanes=[end_to_end(site)]),
        Wave(lanes=[[case(site, "race-engine", 270)], [case(site, "race-torch", 270)]], takes_turns=True),
        Wave(lanes=[[case(site, "endurance", 240), layers(site), *user_commands(site)]]),
        Wave(lanes=[builds(site, FURTHER), [prepared(site, "max-autotune", 480)]], leaves_s=330),
        race_of_engines(site, "all", (*FIRST, *FURTHER), ("eager", "reduce-overhead", "max-autotune")),
        Wave(lanes=[[placements(site)]]),
        Wave(lanes=[[training(site)]]),
    ]


def kernels_are_right(site: Site) -> Lane:
    """Tests and sanitizers of the CUDA kernels."""
    files = (f"tests/engines/test_cuda_{name}.py" for name in ("stain", "finish", "deep"))
    return [
        pytest(site, "tests-kernels", site.kernels, *files),
        sanitizer(site, "memcheck"),
        sanitizer(site, "racecheck"),
    ]


def sanitizer(site: Site, tool: str) -> Step:
    """Every kernel once under compute-sanitizer."""
    places = [shutil.which("compute-sanitizer"), shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")]
    program = next((place for place in places if place), "")
    options = ("--tool", tool, "--target-processes", "all", "--error-exitcode", "1")
    missing = "" if program else "compute-sanitizer, of the CUDA toolkit, is not on the PATH"
    return Step(
        name=tool,
        command=(program, *options, *script(site.kernels, "cuda_kernels", "--sanitize")),
        limit_s=180,
        uses=(ENGINES, BENCHMARKS / "cuda_kernels.py", BENCHMARKS / "deep_kernels.py"),
        lacking=missing or site.kernels.lacking(*ON_GPU),
    )


def kernels_are_fast(site: Site) -> Step:
    """Kernels over 500 tiles, and their times."""
    result = site.work / "cuda_kernels.json"
    return Step(
        name="cuda_kernels",
        command=script(site.kernels, "cuda_kernels", "--out", result),
        limit_s=180,
        uses=(ENGINES, *(BENCHMARKS / f"{name}.py" for name in ("cuda_kernels", "cuda_tiles", "deep_kernels"))),
        writes=(result,),
        lacking=site.kernels.lacking(*ON_GPU, "PIL"),
    )


def prepares(site: Site) -> Lane:
    """What PyTorch makes for the first engines, and its own test on the GPU."""
    work = site.work
    chosen = ("--weights", site.weights) if site.weights else ()
    network = Step(
        name="network",
        command=script(site.torch, "rewrites_tensorrt", "network", work, *chosen),
        limit_s=120,
        reads=(site.weights,) if site.weights else (),
        uses=(TRAINER / "unetsharp_trainer" / "network",),
        writes=(work / "paper.safetensors", work / "reference.npz"),
        lacking=site.torch.lacking(*NETWORK),
    )
    tests = pytest(
        site, "tests-torch", site.torch, "tests/toolkit/test_torch_runtime.py", needs=(*EXPORT, "torch.cuda")
    )
    return [network, exported(site, "export", FIRST), labelled(site), tests]


def prepares_further(site: Site) -> Lane:
    """What PyTorch makes for the other engines, on the CPU."""
    placed = Step(
        name="export-placements",
        command=script(site.torch, "int8_placements", "export", site.work),
        limit_s=120,
        uses=(ENGINES / "unetsharp_engines" / "quantization", BENCHMARKS / "placed_networks.py"),
        writes=(site.work / "placements" / "ours.onnx",),
        lacking=site.torch.lacking(*EXPORT),
    )
    return [exported(site, "export-further", FURTHER), placed]


def exported(site: Site, name: str, sets: Sequence[str]) -> Step:
    """The ONNX of some sets of rewrites."""
    code = (ENGINES / "unetsharp_engines" / "rewrites", TOOLKIT / "unetsharp" / "export")
    return Step(
        name=name,
        command=script(site.torch, "rewrites_tensorrt", "export", site.work, *sets),
        limit_s=240,
        reads=(site.work / "paper.safetensors",),
        uses=(*code, TRAINER / "unetsharp_trainer" / "network", BENCHMARKS / "rewrites_tensorrt.py"),
        writes=tuple(site.work / f"{each}.onnx" for each in sets),
        lacking=site.torch.lacking(*EXPORT),
    )


def labelled(site: Site) -> Step:
    """Labelled patches for ``unetsharp validate``: those of the demo."""
    folder = site.work / "labelled"
    code = (
        "import pathlib, sys; from unetsharp.demo import labelled; labelled.write_labelled(pathlib.Path(sys.argv[1]))"
    )
    return Step(
        name="labelled",
        command=(site.tensorrt.path, "-c", code, str(folder)),
        limit_s=60,
        uses=(TOOLKIT / "unetsharp" / "demo",),
        writes=(site.work / PATCHES,),
        lacking=site.tensorrt.lacking("PIL"),
    )


def builds_first(site: Site) -> Lane:
    """The engines that are measured first, tests of what runs them, and a user's bundle."""
    return [*builds(site, FIRST), *engine_tests(site), user_builds(site)]


def builds(site: Site, names: Sequence[str]) -> Lane:
    """An engine of each set of rewrites."""
    return [
        Step(
            name=f"build-{name}",
            command=script(site.tensorrt, "rewrites_tensorrt", "build", site.work, name),
            limit_s=480 if name == FIRST[0] else 300,
            reads=(site.work / f"{name}.onnx",),
            uses=(TOOLKIT / "unetsharp" / "build",),
            writes=(site.work / f"{name}.plan",),
            lacking=site.tensorrt.lacking("tensorrt", "rich", "onnx") or lacking_plugins(site.tensorrt, name),
        )
        for name in names
    ]


def lacking_plugins(python: Python, name: str) -> str:
    """Why its TensorRT takes no kernel of ours into the engine; empty if it does, or none is asked for."""
    if name != ONE_KERNEL:
        return ""
    version = python.modules["tensorrt"]["version"]
    if tuple(map(int, version.split(".")[:2])) < (10, 9):
        return f"TensorRT {version} takes no kernel of ours into an engine; from 10.9 on it does"
    return python.lacking("cuda.bindings.nvrtc")


def engine_tests(site: Site) -> Lane:
    """The runtime on engines of one layer; bundles built, run, refused; the plugin's kernel within an engine."""
    needs = (*ON_GPU, "tensorrt", "onnx", "PIL")
    runtime = pytest(site, "tests-runtime", site.tensorrt, "tests/engines/test_runtime_tensorrt_gpu.py", needs=needs)
    others = {"tests-bundles": "test_bundle_gpu.py", "tests-plugin": "test_build_plugin_gpu.py"}
    more = (*needs, "onnxruntime", "rich")
    return [runtime, *(pytest(site, n, site.tensorrt, f"tests/toolkit/{f}", needs=more) for n, f in others.items())]


def compiles(site: Site) -> Lane:
    """What torch.compile makes, kept in PyTorch's cache: the network, then the whole chain."""
    return [prepared(site, "reduce-overhead", 420), *(case(site, f"compile-{batch}", 200) for batch in CHAIN_BATCHES)]


def prepared(site: Site, mode: str, limit_s: float) -> Step:
    """The network, compiled in one mode."""
    return Step(
        name=f"compile-{mode}",
        command=script(site.torch, "rewrites_tensorrt", "torch", site.work, "prepare", "--modes", mode),
        limit_s=limit_s,
        reads=(site.work / "paper.safetensors", site.work / "reference.npz"),
        uses=(TRAINER / "unetsharp_trainer" / "network",),
        writes=tuple(compiled(site.work, mode, batch) for batch in BATCHES),
        lacking=site.torch.lacking(*NETWORK_ON_GPU),
    )


def race_of_engines(site: Site, name: str, sets: Sequence[str], modes: Sequence[str]) -> Wave:
    """Engines and PyTorch's network, in turns."""
    work, reference = site.work, site.work / "reference.npz"
    code = (BENCHMARKS / "rewrites_tensorrt.py", BENCHMARKS / "turns.py")
    engines = Step(
        name=f"engines-{name}",
        command=script(site.tensorrt, "rewrites_tensorrt", "engines", work, name, *sets),
        limit_s=400,
        reads=(reference, *(work / f"{each}.plan" for each in FIRST)),
        uses=(*(work / f"{each}.plan" for each in sets), ENGINES, BENCHMARKS / "gpu_engine.py", *code),
        writes=(work / f"engines-{name}.json",),
        lacking=site.tensorrt.lacking("tensorrt", *ON_GPU, "onnx"),
    )
    ready = [compiled(work, mode, batch) for mode in modes if mode != EAGER for batch in BATCHES]
    torch = Step(
        name=f"torch-{name}",
        command=script(site.torch, "rewrites_tensorrt", "torch", work, name, "--modes", *modes),
        limit_s=400,
        reads=(reference, work / "paper.safetensors"),
        uses=(TRAINER / "unetsharp_trainer" / "network", *code, *ready),
        writes=(work / f"torch-{name}.json",),
        lacking=site.torch.lacking(*NETWORK_ON_GPU),
    )
    return Wave(lanes=[[engines], [torch]], takes_turns=True)


def layers(site: Site) -> Step:
    """Where the engines' time goes, layer by layer."""
    return Step(
        name="layers",
        command=script(site.tensorrt, "rewrites_tensorrt", "layers", site.work, *FIRST),
        limit_s=120,
        reads=(site.work / "reference.npz", site.work / "plain.plan"),
        uses=(site.work / "tail-less.plan", BENCHMARKS / "gpu_engine.py", BENCHMARKS / "rewrites_tensorrt.py"),
        writes=(site.work / "layers.json",),
        lacking=site.tensorrt.lacking("tensorrt", *ON_GPU),
    )


def end_to_end(site: Site) -> Lane:
    """The engine's cases from host to host, then PyTorch's chain in each batch."""
    engine = [case(site, name, 150) for name in ("stages", "overlap", "latencies")]
    return [*engine, *(case(site, f"chain-{batch}", 150) for batch in CHAIN_BATCHES)]


def case(site: Site, name: str, limit_s: float) -> Step:
    """A case of `end_to_end.py`."""
    work = site.work
    of_torch = name == "race-torch" or name.startswith(("chain-", "compile-"))
    python = site.torch if of_torch else site.tensorrt
    needs = NETWORK_ON_GPU if of_torch else ("tensorrt", *ON_GPU, "onnx")
    return Step(
        name=name,
        command=script(python, "end_to_end", name, work),
        limit_s=limit_s,
        reads=(work / "reference.npz", work / ("paper.safetensors" if of_torch else "tail-less.plan")),
        uses=(ENGINES, TOOLKIT / "unetsharp" / "bench", BENCHMARKS / "end_to_end.py", BENCHMARKS / "turns.py"),
        writes=(work / f"{name}.json",),
        lacking=python.lacking(*needs),
    )


def user_builds(site: Site) -> Step:
    """``unetsharp build-engine`` of the network that ships."""
    bundle = site.work / "bundle"
    words = ("build-engine", ASSETS / "edge.onnx", "-o", bundle, "--fp16", "--runtime", "tensorrt")
    options = ("--batch", "1,16,64", "--level", "1", "--timing-cache", site.work / "timing.cache")
    return user_command(site, "user-build", words, options, limit_s=300, writes=(bundle / "manifest.json",))


def user_commands(site: Site) -> Lane:
    """What a user does with the bundle."""
    work, bundle = site.work, site.work / "bundle"
    runtime, manifest = ("--runtime", "tensorrt"), (bundle / "manifest.json",)
    has_torch = not site.tensorrt.lacking(*NETWORK_ON_GPU)
    reference = ASSETS / ("edge.safetensors" if has_torch else "edge.onnx")
    peers = ("--against", "torch") if has_torch else ()
    infer = ("infer", ASSETS / "crop.png", "-m", bundle, "-o", work / "nuclei", "--mpp", "0.499")
    validate = ("validate", bundle, "--reference", reference, "--data", work / "labelled", "--report", work / "drift")
    bench = ("bench", bundle, "--batch", "1,16,64", "--out", work / "bench", *peers)
    return [
        user_command(site, "user-infer", infer, runtime, limit_s=120, reads=manifest),
        user_command(site, "user-validate", validate, runtime, limit_s=240, reads=(*manifest, work / PATCHES)),
        user_command(site, "user-bench", bench, runtime, limit_s=180, reads=manifest),
    ]


def placements(site: Site) -> Step:
    """Small networks with Q/DQ pairs here and there, built and timed."""
    return Step(
        name="placements",
        command=script(site.tensorrt, "int8_placements", "build", site.work),
        limit_s=200,
        reads=(site.work / "placements" / "ours.onnx",),
        uses=(site.work / "placements", BENCHMARKS / "int8_placements.py"),
        writes=(site.work / "placements.json",),
        lacking=site.tensorrt.lacking("tensorrt", "pycuda.driver", "onnx"),
    )


def training(site: Site) -> Step:
    """The paper's configuration, trained for five minutes by the recipe that was best so far."""
    result = site.work / "training.json"
    options = ("--only", "scratch, no stain normalization", "--runs", site.work / "runs", "--out", result)
    missing = (
        "" if site.pannuke else "needs PanNuke, folds 1 to 3: name its folder by --pannuke, and allow 10 minutes more"
    )
    return Step(
        name="training",
        command=script(site.torch, "gpu_training", site.pannuke or "PANNUKE", *options),
        limit_s=540,
        uses=(TRAINER, BENCHMARKS / "gpu_training.py"),
        writes=(result,),
        lacking=missing or site.torch.lacking(*NETWORK_ON_GPU, "albumentations"),
    )
