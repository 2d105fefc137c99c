"""What a report is made of: runs, parts, tables of other programs, archives; charts alone; and bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_page import Page

from marrowscope.errors import FileFormatError, OutputError
from marrowscope.report import write_charts, write_report
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, Analysis, Evaluation

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Path:
    return make_run(48, analysed=True)


def test_another_part_of_the_split(make_run: MakeRun) -> None:
    run = make_run(24)
    with pytest.raises(FileFormatError, match=r"evaluation-val\.json. Run `marrowscope evaluate .* --part val`"):
        write_report(run, part="val")
    e = Evaluation.read(run / "evaluation.json").model_copy(update={"part": "val"})
    e.write(run / "evaluation-val.json")
    (run / "predictions.csv").rename(run / "predictions-val.csv")
    out = write_report(run, part="val")
    assert out == run / "report-val.html"
    words = Page(out.read_text(encoding="utf-8")).words
    assert "of the val part" in words
    assert "marrowscope report run-again --part val" in words
    assert write_report(run / "evaluation-val.json") == run / "report-val.html"


def test_a_table_of_another_program(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(24, training=False)
    (run / "predictions.csv").rename(tmp_path / "theirs.csv")
    e = Evaluation.read(run / "evaluation.json").model_copy(update={"predictions": "theirs.csv", "part": None})
    e.write(tmp_path / "theirs.evaluation.json")
    out = write_report(tmp_path / "theirs.evaluation.json", data=run.parent / "data")
    assert out == tmp_path / "theirs.report.html"
    page = Page(out.read_text(encoding="utf-8"))
    assert "Report on theirs" in page.words
    assert "could not be shown" not in page.words
    assert "marrowscope report theirs.evaluation.json" in page.words
    with pytest.raises(FileFormatError, match="marrowscope evaluate"):
        write_report(tmp_path / "theirs.csv")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pictures_out_of_an_archive(make_run: MakeRun, kind: str, tmp_path: Path) -> None:
    run = make_run(24)
    for path in (run.parent / "data" / "NGB").glob("bad_*"):
        path.unlink()  # a zip file can't hold a name that is not UTF-8
    archive = Path(shutil.make_archive(str(tmp_path / "cells"), kind, run.parent / "data"))
    page = Page(write_report(run, data=archive).read_text(encoding="utf-8"))
    cells = page.payload["cells"]
    assert len(cells) == 21
    assert [c[0] for c in cells if c[4] is None] == ["NGB/bad_\N{REPLACEMENT CHARACTER}_byte.jpg"]  # type: ignore[index]


def test_charts_alone(run: Path, tmp_path: Path) -> None:
    files = write_charts(run, tmp_path / "charts")
    assert len(files) == 21
    listed = (tmp_path / "charts" / "README.md").read_text(encoding="utf-8")
    assert NOT_A_MEDICAL_DEVICE in listed
    assert "SYNTHETIC" in listed
    for file in files:
        root = ET.fromstring(file.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        title, description = (root.findtext(f"{{*}}{name}") for name in ("title", "desc"))
        assert title
        assert description
        assert f"({file.name})" in listed
        assert not root.findall(".//{*}image")
        assert "var(--ink)" in str(root.findtext("{*}style"))
    assert not list((tmp_path / "charts").glob("*.html"))


def _without(make_run: MakeRun, *names: str) -> Path:
    run = make_run(24)
    for name in names:
        (run / name).unlink()
    return run


def test_a_run_that_was_not_evaluated(make_run: MakeRun) -> None:
    with pytest.raises(FileFormatError, match=r"marrowscope evaluate .* first"):
        write_report(_without(make_run, "evaluation.json"))


def test_a_run_without_predictions(make_run: MakeRun) -> None:
    with pytest.raises(FileFormatError, match=r"no predictions\.csv"):
        write_report(_without(make_run, "predictions.csv"))


def test_predictions_that_were_not_evaluated(make_run: MakeRun) -> None:
    run = make_run(24)
    with (run / "predictions.csv").open("a") as f:
        f.write("\n")
    with pytest.raises(FileFormatError, match="not the table that"):
        write_report(run)


def test_an_evaluation_of_another_shape(make_run: MakeRun) -> None:
    run = make_run(24)
    e = Evaluation.read(run / "evaluation.json")
    e.model_copy(update={"confusion": e.confusion[:-1]}).write(run / "evaluation.json")
    with pytest.raises(FileFormatError, match="one row for each"):
        write_report(run)


def test_an_analysis_of_other_predictions(make_run: MakeRun) -> None:
    run = make_run(24, analysed=True)
    found = Analysis.read(run / "analysis.json")
    found.model_copy(update={"predictions_sha256": "0" * 64}).write(run / "analysis.json")
    with pytest.raises(FileFormatError, match="marrowscope analyse"):
        write_report(run)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not a run folder"):
        write_report(tmp_path / "nothing")


def test_outputs_that_can_not_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder"):
        write_report(run, output=tmp_path)
    with pytest.raises(OutputError, match="Name it"):
        write_report(run, output=tmp_path / "report.md")
    with pytest.raises(OutputError, match="Name it"):
        write_report(run, output=tmp_path / "report.json")
    with pytest.raises(ValueError, match="max_cells"):
        write_report(run, max_cells=0)
