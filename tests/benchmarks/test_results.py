"""Every result says what was run: by a script that is still here, as of a commit."""

import json
import re
from pathlib import Path

import pytest

import evidence
from evidence import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_names_its_command_and_its_commit(path: Path) -> None:
    result = json.loads(path.read_text())
    assert result["what"] and re.search(r"\b[0-9a-f]{7,40}\b", result["commit"])
    for command in result.get("commands") or [result["command"]]:
        scripts = re.findall(r"\w+\.py", command)
        assert scripts or command.startswith("unetsharp ")
        assert all(list((ROOT / "benchmarks").rglob(script)) for script in scripts)


def test_a_git_that_refuses_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    assert evidence.evidence("what", (), ("engines",))["commit"].startswith("unknown: ")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert evidence.evidence("what", (), ("engines",))["commit"].startswith("unknown: ")
