"""Thumbnails: only from the data folder, within the budget, nothing fatal."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marrowscope.report.thumbnails import LEVELS, make_thumbnails


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (120, 150, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def _size(encoded: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert image.format == "JPEG"
        return image.size


def test_few_pictures_get_the_best_level(data: Path) -> None:
    made = make_thumbnails({f"{i}.png": 1 for i in range(8)}, data)
    assert made.side == LEVELS[0][0]
    assert not made.missing
    assert {_size(p) for p in made.images.values()} == {(made.side, made.side)}


def test_a_tight_budget_makes_them_smaller(data: Path) -> None:
    paths = {f"{i}.png": 1 for i in range(8)}
    full = sum(map(len, make_thumbnails(paths, data).images.values()))
    half = make_thumbnails(paths, data, budget=full // 2)
    assert half.side < LEVELS[0][0]
    assert sum(map(len, half.images.values())) <= full // 2
    assert make_thumbnails(paths, data, budget=1).side == LEVELS[-1][0]


def test_a_wrong_guess_of_the_level_is_mended(tmp_path: Path) -> None:
    # The few pictures that are sampled are plain, the others noisy.
    rng = np.random.default_rng(0)
    paths = [f"{i}.png" for i in range(256)]
    for i, path in enumerate(paths):
        pixels = (
            np.full((32, 32, 3), 200, np.uint8) if i % 4 == 0 else rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        )
        Image.fromarray(pixels).save(tmp_path / path)
    budget = 400_000
    made = make_thumbnails(dict.fromkeys(paths, 1), tmp_path, budget=budget)
    assert made.side < LEVELS[0][0]
    assert sum(map(len, made.images.values())) <= budget


def test_what_can_not_be_shown_is_kept_with_its_reason(data: Path) -> None:
    (data / "text.jpg").write_text("no picture")
    (data / "folder.jpg").mkdir()
    (data.parent / "secret.png").write_bytes((data / "0.png").read_bytes())
    paths = [
        "gone.jpg",
        "text.jpg",
        "folder.jpg",
        "nul\0.jpg",
        "x" * 5000,
        "../secret.png",
        str(data.parent / "secret.png"),
    ]
    made = make_thumbnails(dict.fromkeys([*paths, "0.png", str(data / "1.png")], 1), data)
    assert set(made.missing) == set(paths)
    assert made.missing["gone.jpg"] == made.missing["folder.jpg"] == "file not found"
    assert "known" in made.missing["text.jpg"]
    assert made.missing["../secret.png"] == made.missing[paths[-1]] == "lies outside the data"
    assert set(made.images) == {"0.png", str(data / "1.png")}


def test_copies_count_for_the_budget(data: Path) -> None:
    once = {f"{i}.png": 1 for i in range(8)}
    full = sum(map(len, make_thumbnails(once, data).images.values()))
    thrice = make_thumbnails(dict.fromkeys(once, 3), data, budget=full)
    assert 3 * sum(map(len, thrice.images.values())) <= full
    assert make_thumbnails(once, data, budget=full).side > thrice.side


@pytest.mark.parametrize(("folder", "reason"), [(None, "not known"), (Path("no/such/folder"), "not found")])
def test_no_data_folder(folder: Path | None, reason: str) -> None:
    made = make_thumbnails({"a.jpg": 1, "b.jpg": 3}, folder)
    assert not made.images
    assert all(reason in r for r in made.missing.values())
    assert len(made.missing) == 2
