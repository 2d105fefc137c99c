// The differential beside the wall: live, with intervals; its rows are the keys of the cell counter.

import { make, replace } from "./dom.js";
import { figure, interval, t, value } from "./text.js";

export class Counts {
  // `label(code)` names the chosen cell.
  constructor(book, label) {
    this.book = book;
    this.label = label;
    this.node = make("section.counts", { "aria-labelledby": "counts-head" });
    this.locked = false;
    this.adjusted = null;
    replace(this.node, make("h2", { id: "counts-head" }, t("count.head")));
  }

  show(summary) {
    const d = summary.differential;
    this.summary = summary;
    const rows = new Map(d.rows.map((r) => [r.code, r]));
    const nucleated = [...this.book.known, ...this.book.others].filter((c) => rows.has(c.code)).map((c) => this.row(c, rows.get(c.code)));
    const out = this.book.known.filter((c) => !rows.has(c.code)).map((c) => this.outRow(c, d.left_out[c.code] ?? 0));
    const extra = Object.entries(d.left_out).filter(([code]) => !this.book.codes.includes(code));
    out.push(...extra.map(([code, n]) => this.outRow(this.book.classes.get(code), n)));
    replace(
      this.node,
      make("h2", { id: "counts-head" }, t("count.head")),
      this.reviewed(summary),
      figures(d),
      make("div.scroll", {}, make("table", {}, head(), make("tbody", {}, ...nucleated), this.outside(out))),
      this.more(rows, d),
      leftOut(summary),
      this.corrections(),
      this.notes(summary),
    );
  }

  // Take the adjusted counts of a summary that was asked for with them.
  adjust(summary) {
    this.adjusted = summary;
    this.show(this.summary ?? summary);
  }

  // The button that names the chosen cell, with its key.
  keyButton(c) {
    return keyButton(this.book, c, () => this.label(c.code), this.locked);
  }

  row(c, r) {
    return make(
      "tr",
      { dataset: { code: c.code } },
      make("th", { scope: "row" }, this.keyButton(c)),
      make("td.number", {}, String(r.count)),
      make("td.number", {}, value(r.percent)),
      make("td.number.interval", {}, interval(r.percent)),
    );
  }

  outRow(c, n) {
    return make("tr", { dataset: { code: c.code } }, make("th", { scope: "row" }, this.keyButton(c)), make("td.number", {}, String(n)), make("td.number", {}, "–"), make("td"));
  }

  outside(rows) {
    if (!rows.length) return null;
    return make("tbody.outside", {}, make("tr", {}, make("th", { scope: "rowgroup", colSpan: 4 }, t("count.out"))), ...rows);
  }

  // Classes that only people know, folded away; those already given stand in the table.
  more(rows, d) {
    const others = this.book.others.filter((c) => !rows.has(c.code) && !(c.code in d.left_out));
    if (!others.length) return null;
    const node = this.folded("others", t("count.others"));
    node.append(make("div.keys", {}, ...others.map((c) => this.keyButton(c))));
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

  // The counts corrected for what the model is known to confuse, or why there are none.
  corrections() {
    if (this.adjusted === null) return null;
    const d = this.adjusted.differential;
    const node = this.folded("adjusted", t("count.adjusted"));
    if (d.adjustment === null) {
      node.append(make("p.small", { id: "unadjusted" }, this.adjusted.unadjusted));
      return node;
    }
    const cells = (f) => [make("td.number", {}, figure(f.adjusted)), make("td.number", {}, figure(f.corrected))];
    const rows = d.rows.map((r) => make("tr", { dataset: { adjusted: r.code } }, make("th", { scope: "row" }, r.name), ...cells(r)));
    const more = [["count.blasts", d.blast_percent], ["count.ratio", d.myeloid_erythroid]].map(([name, f]) => make("tr", {}, make("th", { scope: "row" }, t(name)), ...cells(f)));
    const heads = ["count.class", "count.adjusted.column", "count.corrected.column"].map((name) => make("th", { scope: "col" }, t(name)));
    const { cells: n, validation, model } = d.adjustment;
    node.append(
      make("div.scroll", {}, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows, ...more))),
      make("p.small", {}, t("count.adjusted.text", { n, validation, model })));
    return node;
  }

  // A part that stays open or closed when it is drawn anew.
  folded(name, title, open = false) {
    this.open ??= {};
    const node = make(`details.${name}`, { open: this.open[name] ?? open, ontoggle: () => { this.open[name] = node.open; } });
    node.append(make("summary", {}, title));
    return node;
  }

  notes(s) {
    const notes = [...s.notes, ...s.differential.warnings];
    if (!notes.length) return null;
    const node = this.folded("notes", t("count.notes"), true);
    node.append(make("ul", {}, ...notes.map((n) => make("li", {}, n))));
    return node;
  }
}

// A button with the colour, the key and the name of a class.
export function keyButton(book, c, onclick, disabled = false) {
  const key = book.keys.get(c.code);
  const swatch = make("span.swatch", { "aria-hidden": "true" });
  swatch.style.background = c.colour;
  return make(
    "button.key",
    { type: "button", disabled, "aria-keyshortcuts": key, title: t("count.label.button", { name: c.name }), onclick, dataset: { code: c.code } },
    swatch, make("kbd", {}, key), make("span", {}, c.name),
  );
}

const head = () => make("thead", {}, make("tr", {}, ...["class", "cells", "percent", "interval"].map((name) => make("th", { scope: "col" }, t(`count.${name}`)))));

// M:E ratio and blasts, each with its definition.
export function figures(d) {
  const pair = (name, id, named, unit, digits) => [
    make("dt", {}, t(name)),
    make("dd", { id }, figure(named.figure, digits) + (named.figure.value === null ? "" : unit), make("span.definition", {}, named.text)),
  ];
  return make("dl.figures", {}, ...pair("count.ratio", "ratio", d.myeloid_erythroid, "", 2), ...pair("count.blasts", "blasts", d.blast_percent, " %", 1));
}

// How many cells are not counted, and why.
export function leftOut(s) {
  const parts = [["excluded", s.excluded], ["ood", s.ood_waiting], ["failed", s.failed], ["pending", s.pending]]
    .filter(([, n]) => n)
    .map(([what, n]) => t(`count.${what}`, { n }));
  return parts.length ? make("p.leftout", {}, parts.join(" · ")) : null;
}

// The same as a table to sign: without keys.
export function summaryTable(book, summary) {
  const d = summary.differential;
  const row = (name, n, p) => make("tr", {}, make("th", { scope: "row" }, name), make("td.number", {}, String(n)), make("td.number", {}, p ? value(p) : "–"), make("td.number.interval", {}, p ? interval(p) : ""));
  const rows = d.rows.map((r) => row(book.name(r.code), r.count, r.percent));
  const out = Object.entries(d.left_out).filter(([, n]) => n).map(([code, n]) => row(book.name(code), n, null));
  const outside = out.length ? make("tbody.outside", {}, make("tr", {}, make("th", { scope: "rowgroup", colSpan: 4 }, t("count.out"))), ...out) : "";
  return make("div.scroll", {}, make("table", {}, head(), make("tbody", {}, ...rows), outside));
}
