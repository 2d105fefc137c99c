"""Phantoms: the same everywhere, drawn as documented, and never written over anything else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marrowscope.cells import CLASS_SETS
from marrowscope.data import phantom as module
from marrowscope.data._morphology import LIMITS
from marrowscope.data.phantom import MORPHOLOGY, Phantom, draw, masks_folder, write_phantoms
from marrowscope.errors import DataError, OutputError

CODES = CLASS_SETS["marrow-14"].codes
CELLS = [c for c in CODES if c not in ("ART", "NIF")]


@pytest.fixture(scope="module")
def thirty() -> dict[str, list[Phantom]]:
    return {code: [draw(code, 11, k) for k in range(30)] for code in CELLS}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_class_of_marrow_14_has_a_morphology_within_its_limits() -> None:
    assert tuple(sorted(MORPHOLOGY)) == CODES
    for code, morphology in MORPHOLOGY.items():
        for name, (low, high) in LIMITS.items():
            spread = getattr(morphology, name)
            assert low <= spread.mean <= high or name == "lobes", (code, name)
            assert spread.sd >= 0
        assert {morphology.before, morphology.after} <= {None, *CELLS}


@pytest.mark.parametrize("code", CODES)
def test_a_drawing_has_the_documented_shapes_and_depends_on_its_arguments_alone(code: str) -> None:
    one = draw(code, 5, 3)
    assert one.code == code
    assert (one.image.shape, one.image.dtype) == ((250, 250, 3), np.uint8)
    for mask in (one.nucleus, one.cell):
        assert (mask.shape, mask.dtype) == ((250, 250), np.bool_)
    assert not (one.nucleus & ~one.cell).any()
    draw("EBO", 0, 0)
    again = draw(code, 5, 3)
    for name in ("image", "nucleus", "cell"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    for other in (draw(code, 5, 4), draw(code, 6, 3)):
        assert np.abs(one.image.astype(int) - other.image).mean() > 3


@pytest.mark.parametrize("code", CELLS)
def test_cells_look_as_documented(code: str, thirty: dict[str, list[Phantom]]) -> None:
    cells, wanted = thirty[code], MORPHOLOGY[code]
    ratio = [p.nucleus.sum() / p.cell.sum() for p in cells]
    assert np.mean(ratio) == pytest.approx(wanted.nc_ratio.mean, abs=0.08)  # neighbours in maturation pull at it
    diameter_um = [2 * np.sqrt(p.cell.sum() / np.pi) * 0.1 for p in cells]
    assert np.mean(diameter_um) == pytest.approx(wanted.diameter_um.mean, rel=0.12)
    for p in cells:
        green = p.image[..., 1]
        assert green[p.nucleus].mean() < green[p.cell & ~p.nucleus].mean()
        assert green[p.cell].mean() < np.percentile(green, 95)
        assert p.cell[115:135, 115:135].any()  # in the middle of the field


def test_maturing_neutrophils_overlap_but_differ(thirty: dict[str, list[Phantom]]) -> None:
    ratios = {c: np.array([p.nucleus.sum() / p.cell.sum() for p in thirty[c]]) for c in ("PMO", "MMZ", "NGS")}
    for younger, older in pairwise(ratios.values()):
        assert younger.mean() > older.mean() + 0.05
        assert younger.min() < older.max()


def test_eosinophils_are_redder_than_neutrophils(thirty: dict[str, list[Phantom]]) -> None:
    def red_over_blue(p: Phantom) -> float:
        cytoplasm = p.image[p.cell & ~p.nucleus].astype(float)
        return float(cytoplasm[:, 0].mean() / cytoplasm[:, 2].mean())

    assert np.median([red_over_blue(p) for p in thirty["EOS"]]) > np.median([red_over_blue(p) for p in thirty["NGS"]])


def test_files_lie_as_in_the_collection_and_say_that_they_are_synthetic(tmp_path: Path) -> None:
    out = tmp_path / "phantoms"
    seen: list[tuple[int, int]] = []
    drawn = write_phantoms(out, 2, 7, ["NGS", "ART"], masks=True, jobs=1, progress=lambda a, b: seen.append((a, b)))
    assert drawn == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    names = {"ART/ART_00001", "ART/ART_00002", "NGS/NGS_00001", "NGS/NGS_00002"}
    assert contents(out).keys() == {"SYNTHETIC.txt"} | {f"{n}.jpg" for n in names}
    assert contents(masks_folder(out)).keys() == {"SYNTHETIC.txt"} | {f"{n}.png" for n in names}
    note = (out / "SYNTHETIC.txt").read_text("utf-8")
    assert "not photographs of cells" in note
    assert "seed 7" in note
    with Image.open(out / "NGS/NGS_00002.jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (250, 250))
        assert np.abs(np.asarray(picture).astype(int) - draw("NGS", 7, 2).image).mean() < 3
    with Image.open(masks_folder(out) / "NGS/NGS_00002.png") as picture:
        levels = np.asarray(picture)
    np.testing.assert_array_equal(levels == 2, draw("NGS", 7, 2).nucleus)
    np.testing.assert_array_equal(levels >= 1, draw("NGS", 7, 2).cell)


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TASKS_PER_PROCESS", 1)
    for jobs in (1, 2):
        write_phantoms(tmp_path / str(jobs), 2, 1, ["BLA", "NIF"], jobs=jobs)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_request_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(module, "_TASKS_PER_PROCESS", 1)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    request = (8, 1, ["LYT"])
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "a", *request, jobs=jobs, progress=interrupt)
    there = set(contents(tmp_path / "a"))
    assert 4 <= len(there) < 9
    assert not any(name.endswith(".part") for name in there)
    seen: list[int] = []
    assert write_phantoms(tmp_path / "a", *request, progress=lambda done, _: seen.append(done)) == 9 - len(there)
    assert seen == list(range(len(there), 9))
    write_phantoms(tmp_path / "b", *request)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert write_phantoms(tmp_path / "a", *request) == 0


def test_a_missing_mask_is_drawn_again(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "a", 2, 1, ["LYT"], masks=True)
    gone = masks_folder(tmp_path / "a") / "LYT/LYT_00002.png"
    gone.unlink()
    assert write_phantoms(tmp_path / "a", 2, 1, ["LYT"], masks=True) == 1
    assert gone.is_file()


def test_nothing_is_written_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty"):
        write_phantoms(tmp_path, 1, 0, ["LYT"])
    assert contents(tmp_path) == {"mine.txt": b"precious"}


def test_foreign_masks_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a-masks").mkdir()
    (tmp_path / "a-masks" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="a-masks is not empty"):
        write_phantoms(tmp_path / "a", 1, 0, ["LYT"], masks=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("per_class", "seed", "codes"), [(2, 0, ["LYT"]), (1, 1, ["LYT"]), (1, 0, ["LYT", "EBO"])])
def test_another_request_is_refused(tmp_path: Path, per_class: int, seed: int, codes: Sequence[str]) -> None:
    write_phantoms(tmp_path / "a", 1, 0, ["LYT"])
    with pytest.raises(OutputError, match="another request"):
        write_phantoms(tmp_path / "a", per_class, seed, codes)


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError):
        write_phantoms(tmp_path / "a", 1, 0, ["LYT"])


def test_mistakes_name_what_is_allowed(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with pytest.raises(DataError, match=r"'XXX'.*ART BLA"):
        draw("XXX", 0)
    with pytest.raises(DataError, match="0 or more"):
        draw("LYT", -1)
    with pytest.raises(DataError, match=r"'BAS'.*ART BLA"):
        write_phantoms(out, 1, 0, ["LYT", "BAS"])
    with pytest.raises(DataError, match="no class"):
        write_phantoms(out, 1, 0, [])
    with pytest.raises(DataError, match="twice"):
        write_phantoms(out, 1, 0, ["LYT", "LYT"])
    with pytest.raises(DataError, match="per_class must be 1 or more, not 0"):
        write_phantoms(out, 0, 0)
    with pytest.raises(DataError, match="seed must be 0 or more"):
        write_phantoms(out, 1, -1)
    with pytest.raises(DataError, match="jobs must be 1 or more"):
        write_phantoms(out, 1, 0, jobs=0)
    assert not out.exists()
