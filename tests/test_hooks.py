"""The hooks before a commit: they need no network, run what `make check` runs, and take outputs out of notebooks."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
REPOSITORY = Path(__file__).parent.parent


def _hooks() -> dict[str, dict[str, object]]:
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"], "others are fetched from a network"
    return {hook["id"]: hook for hook in config["repos"][0]["hooks"]}


def test_the_hooks_run_programs_of_the_development_environment() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installed = {line.split(">=")[0].split("[")[0] for line in project["optional-dependencies"]["dev"]}
    hooks = _hooks()
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy", "nbstripout"}
    assert "pre-commit" in installed
    for hook in hooks.values():
        assert hook["language"] == "system"
        assert str(hook["entry"]).split()[0] in installed


def test_the_hooks_and_make_check_run_the_same() -> None:
    make = (REPOSITORY / "Makefile").read_text()
    for program in ("ruff check", "ruff format", "mypy"):
        assert f"$(BIN)/{program}" in make
        assert any(str(hook["entry"]).startswith(program) for hook in _hooks().values())


def test_the_configuration_is_one_that_pre_commit_takes() -> None:
    pytest.importorskip("pre_commit")
    run = [sys.executable, "-m", "pre_commit", "validate-config", str(REPOSITORY / ".pre-commit-config.yaml")]
    assert subprocess.run(run, capture_output=True).returncode == 0


def test_outputs_are_taken_out_of_a_notebook_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("nbstripout")
    stored = REPOSITORY / "notebooks" / "resnet50-14c.ipynb"
    notebook = json.loads(stored.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    cells[2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["a path of somebody's machine\n"]}]
    cells[2]["execution_count"] = 3
    copy = tmp_path / "copy.ipynb"
    copy.write_text(json.dumps(notebook))
    subprocess.run([sys.executable, "-m", "nbstripout", str(copy)], check=True)
    assert json.loads(copy.read_text())["cells"] == json.loads(stored.read_text())["cells"]
    clean = tmp_path / "clean.ipynb"
    clean.write_bytes(stored.read_bytes())
    subprocess.run([sys.executable, "-m", "nbstripout", str(clean)], check=True)
    assert clean.read_bytes() == stored.read_bytes(), "a stored notebook stays as it is"
