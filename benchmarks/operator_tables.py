"""What TensorRT's parsers document that they take → toolkit/unetsharp/inspection/operators.json.

Download ``docs/operators.md`` of each release branch of github.com/onnx/onnx-tensorrt (Apache-2.0) and name them:

    python benchmarks/operator_tables.py "TensorRT 8.6=8.6-GA.md" "TensorRT 10.1=10.1-GA.md" …

The file's name is the branch's, which gives its address. TensorRT 11 has NVIDIA's ONNX Opset Guide for its opsets, and
the operators of the last table.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from evidence import ROOT, write_json

OUT = ROOT / "toolkit" / "unetsharp" / "inspection" / "operators.json"
ADDRESS = "https://github.com/onnx/onnx-tensorrt/blob/release/{}/docs/operators.md"
GUIDE = "https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html"
OLDEST_OPSET = 7
"""Of releases whose document gives the newest alone."""


def table(text: str, source: str) -> dict[str, Any]:
    """The opsets and the operators, by the types that they take, of one document."""
    newest = re.search(r"opset (\d+) to opset (\d+)", text) or re.search(r"up to Opset ()(\d+)", text)
    assert newest, "the document's first lines name the opsets"
    operators = defaultdict(list)
    for row in (line.split("|") for line in text.splitlines() if line.startswith("| ")):
        if len(row) > 3 and row[2].strip().startswith("Y"):
            types = " ".join(re.findall(r"[A-Z]+\d*", row[3].replace("INF64", "INT64")))  # a slip in 10.1's
            operators[types].append(row[1].strip())
    by_size = sorted(operators.items(), key=lambda item: -len(item[1]))
    return {
        "source": source,
        "opsets": [int(newest.group(1) or OLDEST_OPSET), int(newest.group(2))],
        "operators": {types: " ".join(sorted(names)) for types, names in by_size},
    }


def main(arguments: list[str]) -> None:
    """Write the tables."""
    tables = {}
    for release, _, name in (argument.partition("=") for argument in arguments):
        tables[release] = table(Path(name).read_text("utf-8"), ADDRESS.format(Path(name).stem))
    tables["TensorRT 11"] = {"source": GUIDE, "opsets": [9, 25], "operators_of": release}
    write_json(OUT, tables)


if __name__ == "__main__":
    main(sys.argv[1:])
