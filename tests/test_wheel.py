"""The wheel: what it holds, and that it predicts in an environment with nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import marrowscope
from marrowscope.data.phantom import write_phantoms

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    run = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_it_reads(wheel: Path) -> None:
    assert f"-{marrowscope.__version__}-" in wheel.name, "the version comes from one place"
    package = REPOSITORY / "src" / "marrowscope"
    tracked = subprocess.run(
        ["git", "ls-files", "."], cwd=package, capture_output=True, text=True, check=True
    ).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = [name for name in tracked if f"marrowscope/{name}" not in inside]
    assert tracked
    assert not missing


@pytest.mark.slow
def test_the_wheel_predicts_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed as a user would: a new environment, the wheel and what it asks for, nothing else."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    bin_ = environment / "bin"
    subprocess.run([str(bin_ / "pip"), "install", "-q", "--disable-pip-version-check", str(wheel)], check=True)
    write_phantoms(tmp_path / "cells", per_class=2, seed=0, jobs=1)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(bin_ / "marrowscope"), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    packages = subprocess.run([str(bin_ / "pip"), "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in packages
    run("predict", "marrow8", "cells", "-o", "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 28
    assert "28" in run("count", "predictions.csv")
