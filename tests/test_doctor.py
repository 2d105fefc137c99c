"""The first-run check: right about what is there, and clear about what is not."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import tiny_onnx
from marrowscope import doctor
from marrowscope.cli import app
from marrowscope.infer.classifier import CARD_KEY


def _model(folder: Path, scale: float = 1.0) -> Path:
    """A tiny model in a file; `scale` multiplies its logits."""
    model = tiny_onnx.graph()
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, tiny_onnx.card().model_dump_json()
    for constant in model.graph.initializer:
        if constant.name == "w":
            constant.CopyFrom(onnx.numpy_helper.from_array(tiny_onnx.weights()[0] * np.float32(scale), "w"))
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    return path


def _by_name(**options: object) -> dict[str, doctor.Check]:
    return {c.name: c for c in doctor.examine(seconds=0.1, **options)}  # type: ignore[arg-type]


def test_finds_the_data_and_lets_the_model_answer(cells: Path, tmp_path: Path) -> None:
    checks = _by_name(data=cells, model=str(_model(tmp_path)))
    assert checks["data"].state == "good"
    assert checks["data"].found.startswith("30 images, 3 classes")
    assert checks["self-test"].state == "good"
    assert checks["packages"].state == "good"
    assert "onnxruntime 1" in checks["packages"].found
    assert all(c.advice for c in checks.values() if c.state != "good"), "each failing line says what to do"


def test_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_gib", lambda: (4.0, 0.5))
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"sse2"})
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "one.jpg").write_bytes(b"none")
    checks = _by_name(data=tmp_path, model="no such model")
    assert checks["memory"].state == "bad"
    assert checks["processor"].state == "note"
    assert checks["data"].state == "bad"
    assert checks["self-test"].state == "bad"
    assert "no such model" in checks["self-test"].found
    assert "--model" in checks["self-test"].advice


def test_a_model_that_answers_with_no_numbers_fails(tmp_path: Path) -> None:
    assert _by_name(model=str(_model(tmp_path, scale=float("nan"))))["self-test"].state == "bad"


def test_missing_packages_are_named() -> None:
    check = doctor._packages("training", ("numpy", "not-a-package-of-anyone"), "note", "pip install it")
    assert check.state == "note"
    assert check.found.endswith("; missing: not-a-package-of-anyone")
    assert check.advice == "pip install it"


def test_all_packages_of_the_plain_install_are_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[^A-Za-z0-9-]", line)[0] for line in project["dependencies"]} == set(doctor._PLAIN)


def test_checksums_tell_a_changed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models_onnx"
    folder.mkdir()
    path = _model(folder)
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(doctor, "bundled", lambda: ["tiny"])
    monkeypatch.setattr(doctor.resources, "files", lambda _: tmp_path)
    for recorded, state in ((good, "good"), ("0" * 64, "bad")):
        (folder / doctor.CHECKSUMS).write_text(f"{recorded}  tiny.onnx\n")
        assert next(iter(doctor._models())).state == state


def test_the_command_ends_with_status_1_and_names_what_to_mend(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path / "nowhere"), "--model", str(_model(tmp_path))])
    assert result.exit_code == 1
    assert "BAD   data" in result.stdout
    assert "1 to mend: data" in result.stderr


def test_json_is_a_list_of_checks(cells: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", "--data", str(cells), "--model", str(_model(tmp_path))])
    checks = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert {"name", "state", "found", "advice"} == set(checks[0])
