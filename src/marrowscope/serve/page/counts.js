// The differential beside the wall: live, with intervals; its rows are the keys of the cell counter.

import { make, replace } from "./dom.js";
import { figure, t } from "./text.js";

export class Counts {
  // `label(code)` names the chosen cell.
  constructor(book, label) {
    this.book = book;
    this.label = label;
    this.node = make("section.counts", { "aria-labelledby": "counts-head" });
    this.locked = false;
    replace(this.node, make("h2", { id: "counts-head" }, t("count.head")));
  }

  show(summary) {
    const d = summary.differential;
    const rows = new Map(d.rows.map((r) => [r.code, r]));
    const nucleated = [...this.book.known, ...this.book.others].filter((c) => rows.has(c.code)).map((c) => this.row(c, rows.get(c.code)));
    const out = this.book.known.filter((c) => !rows.has(c.code)).map((c) => this.outRow(c, d.left_out[c.code] ?? 0));
    const extra = Object.entries(d.left_out).filter(([code]) => !this.book.codes.includes(code));
    out.push(...extra.map(([code, n]) => this.outRow(this.book.classes.get(code), n)));
    const heads = ["count.class", "count.cells", "count.percent"].map((name) => make("th", { scope: "col" }, t(name)));
    replace(
      this.node,
      make("h2", { id: "counts-head" }, t("count.head")),
      this.reviewed(summary),
      this.figures(d),
      make("div.scroll", {}, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...nucleated), this.outside(out))),
      this.more(rows, d),
      this.left(summary),
      this.notes(summary),
    );
  }

  // The button that names the chosen cell, with its key.
  keyButton(c) {
    const key = this.book.keys.get(c.code);
    const swatch = make("span.swatch", { "aria-hidden": "true" });
    swatch.style.background = c.colour;
    return make(
      "button.key",
      {
        type: "button",
        disabled: this.locked,
        "aria-keyshortcuts": key,
        title: t("count.label.button", { name: c.name }),
        onclick: () => this.label(c.code),
        dataset: { code: c.code },
      },
      swatch, make("kbd", {}, key), make("span", {}, c.name),
    );
  }

  row(c, r) {
    return make(
      "tr",
      { dataset: { code: c.code } },
      make("th", { scope: "row" }, this.keyButton(c)),
      make("td.number", {}, String(r.count)),
      make("td.number", {}, figure(r.percent)),
    );
  }

  outRow(c, n) {
    return make("tr", { dataset: { code: c.code } }, make("th", { scope: "row" }, this.keyButton(c)), make("td.number", {}, String(n)), make("td.number", {}, "–"));
  }

  outside(rows) {
    if (!rows.length) return null;
    return make("tbody.outside", {}, make("tr", {}, make("th", { scope: "rowgroup", colSpan: 3 }, t("count.out"))), ...rows);
  }

  // Classes that only people know, folded away; those already given stand in the table.
  more(rows, d) {
    const others = this.book.others.filter((c) => !rows.has(c.code) && !(c.code in d.left_out));
    if (!others.length) return null;
    const node = make("details.others", { open: this.open ?? false, ontoggle: () => { this.open = node.open; } });
    node.append(make("summary", {}, t("count.others")), make("div.keys", {}, ...others.map((c) => this.keyButton(c))));
    return node;
  }

  reviewed(s) {
    const n = Math.min(s.reviewed_nucleated, s.wanted);
    return make(
      "div.reviewed",
      {},
      make("progress", { max: s.wanted, value: n, "aria-label": t("count.progress") }),
      make("span", { id: "reviewed" }, t("count.reviewed", { n: s.reviewed_nucleated, wanted: s.wanted })),
      make("span", { id: "counted" }, t("count.total", { n: s.differential.counted })),
    );
  }

  figures(d) {
    const pair = (name, id, named, unit) => [
      make("dt", { title: named.text }, t(name)),
      make("dd", { id }, named.figure.value === null ? t("count.unknown") : figure(named.figure) + unit),
    ];
    return make("dl.figures", {}, ...pair("count.ratio", "ratio", d.myeloid_erythroid, ""), ...pair("count.blasts", "blasts", d.blast_percent, " %"));
  }

  left(s) {
    const parts = [["excluded", s.excluded], ["ood", s.ood_waiting], ["failed", s.failed], ["pending", s.pending]]
      .filter(([, n]) => n)
      .map(([what, n]) => t(`count.${what}`, { n }));
    return parts.length ? make("p.left", { id: "left-out" }, parts.join(" · ")) : null;
  }

  notes(s) {
    const notes = [...s.notes, ...s.differential.warnings];
    if (!notes.length) return null;
    return make("details.notes", { open: true }, make("summary", {}, t("count.notes")), make("ul", {}, ...notes.map((n) => make("li", {}, n))));
  }
}

// The same as a table to sign: without keys.
export function summaryTable(book, summary) {
  const d = summary.differential;
  const heads = ["count.class", "count.cells", "count.percent"].map((name) => make("th", { scope: "col" }, t(name)));
  const rows = d.rows.map((r) => make("tr", {}, make("th", { scope: "row" }, book.name(r.code)), make("td.number", {}, String(r.count)), make("td.number", {}, figure(r.percent))));
  return make("div.scroll", {}, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
}

