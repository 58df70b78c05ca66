"""The report in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetsharp.outputs.folder import write_files
from unetsharp.validate.page import page
from unetsharp.validate.validation import Validation

__all__ = ["JSON_NAME", "PAGE_NAME", "write"]

JSON_NAME, PAGE_NAME = "report.json", "report.html"


def write(validation: Validation, record: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write page and JSON into ``folder``, both or neither; returns their paths. Raises InputError as `write_files`."""
    told = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {PAGE_NAME: page(validation, record["made"]), JSON_NAME: told}
    write_files({folder / name: text.encode() for name, text in texts.items()}, "--report")
    return folder / PAGE_NAME, folder / JSON_NAME
