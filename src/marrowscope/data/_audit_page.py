"""The audit as one self-contained HTML page, with the pictures side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image

from marrowscope.data.sources import Source
from marrowscope.errors import ImageError
from marrowscope.images import decode
from marrowscope.schema import NOT_A_MEDICAL_DEVICE

if TYPE_CHECKING:
    from marrowscope.data.audit import Audit

_SIDE = 160  # pixels of a picture on the page

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td:last-child { font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; padding-top: .8rem; border-top: 1px solid #8884; }
figure { margin: 0; width: 160px; } figcaption { font-size: .75rem; overflow-wrap: anywhere; }
img, .none { width: 160px; height: 160px; object-fit: contain; background: #8882; }
.note { flex: 1 1 12rem; font-size: .85rem; }
"""


def audit_page(audit: Audit, source: Source, title: str, limit: int = 100) -> str:
    """HTML text; each section shows at most `limit` findings and says how many there are."""
    near = list(_near(audit, source, limit))
    name = f"Audit of {escape(title)}"
    body = [
        f"<h1>{name}</h1>",
        f"<p>{escape(NOT_A_MEDICAL_DEVICE)}</p>",
        _summary(audit),
        *_section("Near duplicates", "One picture is the other one, changed.", near, audit.near),
        *_section(
            "One picture, several classes",
            "Copies, or near copies, that stand in folders of different classes.",
            list(_conflicts(audit, source, limit)),
            {r.group for r in audit.conflicts},
        ),
        *_section(
            "Identical files", "The same bytes under several names.", list(_exact(audit, source, limit)),
            {r.group for r in audit.exact},
        ),
        *_section(
            "Out of line", "Far from the median of all pictures.", list(_outliers(audit, source, limit)), audit.outliers
        ),
        *([] if audit.label_errors is None else _section(
            "Probable label errors", "A model that was not trained on the picture is confident of another class.",
            list(_label_errors(audit, source, limit)), audit.label_errors,
        )),
        *_section(
            "Broken files", "Can't be used.",
            [f"<p>{escape(r.path)}: {escape(r.reason)}</p>" for r in audit.broken[:limit]], audit.broken,
        ),
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    style = f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head><body>\n{"".join(body)}</body></html>\n'


def _summary(audit: Audit) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{n:,}</td></tr>" for k, n in audit.summary().items())
    return f"<table><tr><th>Finding</th><th>Count</th></tr>{rows}</table>"


def _section(title: str, what: str, shown: Sequence[str], found: Sequence[object] | set[str]) -> list[str]:
    if not found:
        return [f"<h2>{title}</h2><p>{what} None found.</p>"]
    more = f" The first {len(shown)} of {len(found):,} are shown." if len(shown) < len(found) else ""
    return [f"<h2>{title}</h2><p>{what}{more}</p>", *shown]


def _near(audit: Audit, source: Source, limit: int) -> Iterator[str]:
    for r in audit.near[:limit]:
        pair = [_figure(source, r.path, r.label), _figure(source, r.other_path, r.other_label)]
        note = f"Transform: {r.transform}. Shift: {r.dx} % right, {r.dy} % down. Correlation: {r.score:.3f}."
        yield _row([*pair, f'<p class="note">{note}</p>'])


def _conflicts(audit: Audit, source: Source, limit: int) -> Iterator[str]:
    groups = groupby(audit.conflicts, key=lambda r: r.group)
    for (_, rows), _i in zip(groups, range(limit), strict=False):
        yield _row(_figure(source, r.path, r.label) for r in list(rows)[:8])


def _exact(audit: Audit, source: Source, limit: int) -> Iterator[str]:
    groups = groupby(audit.exact, key=lambda r: r.group)
    for (_, members), _i in zip(groups, range(limit), strict=False):
        rows = list(members)
        names = ", ".join(f"{escape(r.path)} ({escape(r.label)})" for r in rows[:20])
        yield _row([_figure(source, rows[0].path, rows[0].label), f'<p class="note">{names}</p>'])


def _outliers(audit: Audit, source: Source, limit: int) -> Iterator[str]:
    for r in sorted(audit.outliers, key=lambda r: -abs(r.deviation))[:limit]:
        note = f"{escape(r.measure)}: {r.value:g}, median {r.median:g}, {r.deviation:+.1f} robust standard deviations."
        yield _row([_figure(source, r.path, r.label), f'<p class="note">{note}</p>'])


def _label_errors(audit: Audit, source: Source, limit: int) -> Iterator[str]:
    for r in (audit.label_errors or ())[:limit]:
        note = f"{r.label} {r.label_probability:.2f}, {r.suggested} {r.suggested_probability:.2f}"
        yield _row([_figure(source, r.path, r.label), f'<p class="note">{escape(note)}</p>'])


def _row(cells: Iterable[str]) -> str:
    return f'<div class="row">{"".join(cells)}</div>'


def _figure(source: Source, path: str, label: str) -> str:
    try:
        image = Image.fromarray(decode(source.read(path)))
    except ImageError:
        picture = '<div class="none"></div>'
    else:
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(label)}">'
    return f"<figure>{picture}<figcaption>{escape(label)}: {escape(path)}</figcaption></figure>"
