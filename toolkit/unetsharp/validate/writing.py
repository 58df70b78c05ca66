"""The report in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetsharp.validate.page import page
from unetsharp.validate.validation import Validation
from unetsharp_engines.files import replacing

__all__ = ["JSON_NAME", "PAGE_NAME", "write"]

JSON_NAME, PAGE_NAME = "report.json", "report.html"


def write(validation: Validation, record: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write page and JSON into ``folder``, each whole or not at all; returns their paths."""
    texts = {
        PAGE_NAME: page(validation, record["made"]),
        JSON_NAME: json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / PAGE_NAME, folder / JSON_NAME
