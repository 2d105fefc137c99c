"""`marrowscope models`: what comes with the package, and cards that people can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny_onnx
from marrowscope.infer import classifier
from marrowscope.modelcards import BundledModel, bundled_models, card_line, card_markdown, read_card
from marrowscope.schema import Card, Figure


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with one bundled model."""
    folder = tmp_path / "models_onnx"
    folder.mkdir()
    tiny_onnx.write_model(folder / "marrow4.onnx", name="marrow4")
    monkeypatch.setattr(classifier.resources, "files", lambda name: tmp_path)
    return folder


def test_bundled_models_are_listed_with_their_facts(package: Path) -> None:
    (model,) = bundled_models()
    assert (model.name, model.bytes) == ("marrow4", (package / "marrow4.onnx").stat().st_size)
    line = card_line(model)
    assert line.startswith(
        "marrow4: 4 classes (BLA EOS LYT NGS), input 32 px, fp32, 0.0 MB, test accuracy not measured"
    )
    assert line.endswith("trained on phantoms (MIT)")
    figure = Figure(value=0.9, low=0.85, high=0.94, n=100, method="Wilson")
    measured = BundledModel(model.card.model_copy(update={"test": {"accuracy": figure}}), "a", 1)
    assert "test accuracy 0.900 (0.850–0.940)" in card_line(measured)


def test_a_card_says_what_the_model_is_and_what_it_does_not_know(tiny_run: Path) -> None:
    card = read_card(str(tiny_run))
    text = card_markdown(card)
    assert text.startswith(f"# {card.name}\n")
    for words in (
        "Not a medical device",
        "synthetic",
        "| BLA | blast | 8 | 1 | 1 |",
        "| all | | 24 | 3 | 3 |",
        card.weights_sha256,
        "test part was not opened",
        f"accuracy {card.validation['val_accuracy']:.3f}",
        "11 of the 14 classes of marrow-14",
        "plasma cell (PLM)",
        "The mix of a real marrow",
    ):
        assert words in text, words
    assert "lymphocyte (LYT)" not in text.split("does not know")[1]
    assert all(line.count("|") in {0, 6} for line in text.splitlines()), "every row of the table is whole"


def test_a_card_says_which_answers_to_trust(tiny_run: Path) -> None:
    values = read_card(str(tiny_run)).model_dump()
    figure = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 100, "method": "Wilson"}
    values |= {
        "test": {"macro_f1": figure},
        "scaling": {"method": "temperature", "scale": [1.2] * 3, "bias": [0.0] * 3, "fitted_on": 50},
        "acceptance": [
            {"accuracy": 0.95, "threshold": 0.8, "coverage": 0.6, "fitted_on": 50},
            {"accuracy": 0.98, "threshold": 2.0, "coverage": 0.0, "fitted_on": 50},
        ],
        "teachers": ["large", "other"],
        "conformal": [{"method": "split", "alpha": 0.05, "thresholds": [0.1] * 3, "fitted_on": 50}],
        "novelty": {"method": "energy", "threshold": 1.0, "kept": 0.95, "fitted_on": 50},
    }
    text = card_markdown(Card.model_validate(values))
    for words in (
        "| macro f1 | 0.900 (0.850–0.940) | 100 | Wilson |",
        "temperature scaling, 50 cells",
        "Confidence of 0.800 and more: 95% of answers right on validation cells; 60% of cells reach it",
        "No confidence is known to make 98% of answers right",
        "learnt from the answers of large and other",
        "truth for 95% of cells (split)",
        "flagged (energy; 95% of its own are not)",
    ):
        assert words in text, words


def test_the_command_lists_and_explains(tiny_run: Path) -> None:
    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "marrowscope.cli", "models", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    listed = run()
    assert listed.returncode == 0, listed.stderr
    assert "Not a medical device" in listed.stdout
    assert run("--card", tiny_run).stdout == card_markdown(read_card(str(tiny_run)))
    refused = run("--card", "nonesuch")
    assert refused.returncode == 2
    assert "neither a file nor a bundled name" in refused.stderr
