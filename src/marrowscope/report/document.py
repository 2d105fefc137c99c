"""Set the content as JSON: the same figures for programs."""

from __future__ import annotations

import json
from typing import Any

from marrowscope.report.content import Content
from marrowscope.report.words import shown
from marrowscope.schema import NOT_A_MEDICAL_DEVICE, Document

FORMAT = "marrowscope report 1"


def render_json(content: Content) -> str:
    """The documents that the report rests on, whole, with what stands beside them on the page."""
    run = content.run

    def whole(document: Document | None) -> Any:
        return None if document is None else document.model_dump(mode="json")

    explained = run.explained
    baseline = content.baseline
    data = {
        "format": FORMAT,
        "title": content.title,
        "notice": NOT_A_MEDICAL_DEVICE,
        "synthetic": run.synthetic,
        "headline": [f.key for f in content.headline],
        "right": content.n_right,
        "commonest_class": None if baseline is None else {"code": baseline[0], "share": baseline[1]},
        "evaluation": whole(run.evaluation),
        "analysis": whole(run.analysis),
        "explanation_tests": whole(explained.tests) if explained else None,
        "learning_curves": list(run.metrics),
        "failed_files": [{"path": shown(path), "reason": shown(reason)} for path, reason in content.failed_files],
        "missing_pictures": content.missing_reasons,
        "split": whole(run.split.info) if run.split else None,
        "card": whole(run.card),
        "run": whole(run.info),
        "settings": run.config,
        "commands": list(content.commands),
    }
    # Names of files that are not valid UTF-8 stay as escapes, which JSON can hold.
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
