"""Judge the shipped edge weights on the held-out fold of the openly licensed data, source by source.

    OMP_NUM_THREADS=1 python benchmarks/edge/judge.py OPEN_DATA --out benchmarks/results/edge_weights.json

OPEN_DATA is what ``make_open_data.py`` wrote. The scores are ``unetsharp evaluate``'s.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from make_open_data import TISSUE  # noqa: E402

from evidence import evidence, write_json  # noqa: E402
from training_runs import judged  # noqa: E402
from unetsharp_engines.files import sha256_of  # noqa: E402

WEIGHTS = ROOT / "toolkit/unetsharp/assets/edge.safetensors"


def main() -> None:
    """Judge, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what make_open_data.py wrote")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    began = time.monotonic()
    scores = judged(arguments.weights, arguments.data, "3")
    seconds = time.monotonic() - began
    sources = {source: scores[tissue] for source, tissue in TISSUE.items()}
    report = {
        **evidence(
            "edge weights on held-out source images", ("torch", "timm", "numpy"), ("trainer", "toolkit", "engines")
        ),
        "weights_sha256": sha256_of(arguments.weights),
        "seconds": round(seconds, 1),
        "images_per_second_all_included": round(scores["all"]["patches"] / seconds, 2),
        "held_out": {"all": scores["all"], **sources},
    }
    print(json.dumps({name: row["foreground_dice"] for name, row in report["held_out"].items()}))
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
