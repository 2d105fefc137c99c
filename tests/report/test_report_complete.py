"""Every figure that the documents of a run hold stands, with its interval, in the page, the Markdown and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_page import Page

from marrowscope.report import write_report
from marrowscope.schema import Figure

FIELDS = set(Figure.model_fields)


def _numbered(document: Any, found: dict[str, str], place: str) -> Any:
    """The document with an interval for each figure that no other one has; `found` gets how each is printed."""
    if isinstance(document, list):
        return [_numbered(v, found, f"{place}[{i}]") for i, v in enumerate(document)]
    if not isinstance(document, dict):
        return document
    if set(document) != FIELDS:
        return {k: _numbered(v, found, f"{place}.{k}") for k, v in document.items()}
    if document["value"] is None:
        return document
    i = len(found)
    figure = {**document, "value": 0.5, "low": (i % 400 + 1) / 1000, "high": 0.6 + (i // 400) / 1000}
    found[place] = str(Figure.model_validate(figure))
    return figure


@pytest.fixture(scope="module")
def numbered(make_run: Callable[..., Path]) -> tuple[Path, dict[str, str]]:
    """A run whose figures all differ, with its report; and how each figure is printed, by its place."""
    run = make_run(96, analysed=True, synthetic=False)
    found: dict[str, str] = {}
    for name in ("evaluation.json", "analysis.json", "explanation-tests.json"):
        document = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps(_numbered(document, found, name)), encoding="utf-8")
    write_report(run)
    return run, found


def test_the_documents_hold_all_kinds_of_figures(numbered: tuple[Path, dict[str, str]]) -> None:
    _, found = numbered
    assert len(set(found.values())) == len(found) > 200
    for part in ("novelty", "robustness", "conformal", "calibration", "quality", "feature_map", "cascade", "per_class"):
        assert any(part in place for place in found), part


@pytest.mark.parametrize("kind", ["html", "md"])
def test_every_figure_is_there_with_its_interval(numbered: tuple[Path, dict[str, str]], kind: str) -> None:
    run, found = numbered
    text = (run / f"report.{kind}").read_text(encoding="utf-8")
    words = Page(text).words if kind == "html" else text
    missing = [place for place, printed in found.items() if printed not in words]
    assert not missing, missing[:20]


def test_the_json_has_the_same_figures(numbered: tuple[Path, dict[str, str]]) -> None:
    run, found = numbered

    def printed(document: Any) -> set[str]:
        if isinstance(document, list):
            return set().union(*map(printed, document))
        if not isinstance(document, dict):
            return set()
        if set(document) == FIELDS:
            return {str(Figure.model_validate(document))}
        return set().union(*map(printed, document.values()))

    assert set(found.values()) <= printed(json.loads((run / "report.json").read_text(encoding="utf-8")))
