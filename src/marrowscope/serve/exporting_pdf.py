"""A case as one page to print and sign."""

from __future__ import annotations

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from marrowscope.schema import Figure
from marrowscope.serve.exporting import CaseExport

_WIDTHS = (16, 62, 20, 24, 48)
_ADJUSTED_WIDTHS = (12, 43, 14, 16, 29, 30, 30)


def to_pdf(case: CaseExport) -> bytes:
    """A4, in fonts that every reader has; characters that these lack are shown as ``?`` (the HTML export has them)."""
    pdf = FPDF(format="A4")
    pdf.set_title(_latin(f"Differential count: {case.name}"))
    pdf.set_creator(case.program)
    pdf.set_lang("en")
    pdf.set_margin(18)
    pdf.add_page()
    _head(pdf, case)
    _table(pdf, case)
    _figures(pdf, case)
    _foot(pdf, case)
    return bytes(pdf.output())


def _latin(text: str) -> str:
    return text.replace("–", "-").encode("latin-1", "replace").decode("latin-1")


def _line(pdf: FPDF, text: str, size: float = 10, style: str = "") -> None:
    pdf.set_font("helvetica", style, size)
    pdf.multi_cell(0, size * 0.5, _latin(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _head(pdf: FPDF, case: CaseExport) -> None:
    _line(pdf, "Differential count", 18, "B")
    _line(pdf, case.intended_use, 10, "B")
    pdf.ln(2)
    _line(pdf, f"Case: {case.name}")
    if case.signed is None:
        _line(pdf, "Not signed: this is a draft.", 10, "B")
    else:
        _line(pdf, f"Signed by {case.signed.by} at {case.signed.at} (revision {case.signed.revision})")
        if case.signed.comment:
            _line(pdf, f"Comment: {case.signed.comment}")
    pdf.ln(3)


def _table(pdf: FPDF, case: CaseExport) -> None:
    d = case.summary.differential
    both = d.adjustment is not None
    rows = [("Code", "Class", "Cells", "Percent", "95 % interval", *(("Adjusted", "Corrected") if both else ()))]
    for r in d.rows:
        figures = (_whole(r.adjusted), _whole(r.corrected)) if both else ()
        rows.append((r.code, r.name, str(r.count), _number(r.percent), _interval(r.percent), *figures))
    pdf.set_font("helvetica", "", 8.5 if both else 10)
    widths = _ADJUSTED_WIDTHS if both else _WIDTHS
    aligned = ("LEFT", "LEFT", *("RIGHT",) * (len(widths) - 2))
    with pdf.table(col_widths=widths, text_align=aligned, line_height=5.5) as table:
        for values in rows:
            row = table.row()
            for value in values:
                row.cell(_latin(value))
    pdf.ln(3)


def _figures(pdf: FPDF, case: CaseExport) -> None:
    s, d = case.summary, case.summary.differential
    _line(pdf, f"{d.counted} nucleated cells counted; {s.reviewed_nucleated} of them looked at by a person.")
    for named, unit in ((d.myeloid_erythroid, ""), (d.blast_percent, " %")):
        figure = named.figure
        value = "not known" if figure.value is None else f"{_number(figure)}{unit} ({_interval(figure)})"
        if d.adjustment is not None:
            value += f", adjusted {_whole(named.adjusted)}, corrected {_whole(named.corrected)}"
        _line(pdf, f"{'M:E ratio' if not unit else 'Blasts'}: {value}; {named.text}")
    left = [f"{n} {code}" for code, n in d.left_out.items() if n]
    left += [
        f"{n} {what}" for what, n in (("excluded", s.excluded), ("out of distribution", s.ood_waiting),
                                      ("without an answer", s.failed), ("pending", s.pending)) if n
    ]  # fmt: skip
    _line(pdf, f"Not counted: {', '.join(left) or 'none'}.")
    pdf.ln(3)
    for text in (*s.notes, *d.warnings):
        _line(pdf, f"Note: {text}", 9)
    if d.adjustment is not None:
        a = d.adjustment
        _line(pdf, f"Adjusted: {a.adjusted}; {a.validation} validation cells. Corrected: {a.corrected}.", 9)


def _foot(pdf: FPDF, case: CaseExport) -> None:
    pdf.ln(3)
    _line(pdf, f"Model {case.model_name}, SHA-256 {case.model_sha256}", 8)
    signed = f"; signed with {case.signed.program}" if case.signed else ""
    _line(pdf, f"Written by {case.program}{signed}. Case {case.id}, revision {case.revision}.", 8)
    if case.summary.differential.rows:
        _line(pdf, f"Intervals: {case.summary.differential.rows[0].percent.method}.", 8)


def _number(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:.1f}"


def _whole(figure: Figure | None) -> str:
    return "-" if figure is None or figure.value is None else f"{_number(figure)} ({_interval(figure)})"


def _interval(figure: Figure) -> str:
    if figure.low is None:
        return "-"
    return f"{figure.low:.1f} to {'infinity' if figure.high is None else f'{figure.high:.1f}'}"
