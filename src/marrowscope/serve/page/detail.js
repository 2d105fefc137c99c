// One cell large: its picture with the explanation over it, probabilities, conformal set, history.

import { cellUrl, getHistory } from "./api.js";
import { button, make, openDialog, replace } from "./dom.js";
import { moment, percent, t } from "./text.js";
import { describe } from "./wall.js";

export class Detail {
  // `room` gives book, caseId, isLocked, modelLoaded, act(change), label(code), go(steps).
  constructor(room) {
    this.room = room;
    this.dialog = null;
    this.number = null;
  }

  get isOpen() {
    return this.dialog !== null;
  }

  open(number) {
    this.number = number;
    if (this.dialog) return this.draw();
    openDialog(t("detail.head", { number }), (dialog) => {
      this.dialog = dialog;
      this.body = make("div.detail", { tabIndex: -1, autofocus: true });
      return [this.body, button("✕", () => dialog.close(), { className: "close", "aria-label": t("close") })];
    }, { wide: true }).then(() => {
      this.dialog = null;
      this.room.closed();
    });
    this.draw();
  }

  // Draw it anew if it shows this cell.
  refresh(number) {
    if (this.dialog && number === this.number) this.draw();
  }

  draw() {
    const { book, caseId } = this.room;
    const cell = book.byNumber.get(this.number);
    this.dialog.querySelector("h2").textContent = t("detail.head", { number: this.number });
    const focused = document.activeElement?.dataset?.act;
    replace(this.body, this.picture(cell, caseId), make("div.facts", {}, make("p.what", {}, describe(book, cell)), this.doing(cell), this.bars(cell), this.set(cell), this.history(), this.file(cell)));
    if (focused) this.body.querySelector(`[data-act="${focused}"]`)?.focus();
  }

  picture(cell, caseId) {
    const image = make("img", { src: cellUrl(caseId, cell.number, "picture"), alt: t("detail.picture", { number: cell.number }) });
    const frame = make("div.frame", {}, image);
    const said = make("p.explained", { role: "status" });
    const explain = button(t("detail.explain"), () => {
      const code = cell.predicted;
      said.textContent = t("detail.explaining");
      const heat = make("img.heat", { alt: "", src: `${cellUrl(caseId, cell.number, "explanation")}?class=${code}` });
      heat.addEventListener("load", () => {
        frame.querySelector(".heat")?.remove();
        frame.append(heat);
        said.textContent = t("detail.explained", { name: this.room.book.name(code) });
      });
      heat.addEventListener("error", () => { said.textContent = t("error.unknown", { message: "503" }); });
    }, { dataset: { act: "explain" }, disabled: cell.status !== "ready" || !this.room.modelLoaded });
    const walk = make("div.walk", {},
      button("←", () => this.room.go(-1), { "aria-label": t("detail.previous"), dataset: { act: "previous" } }),
      button("→", () => this.room.go(1), { "aria-label": t("detail.next"), dataset: { act: "next" } }));
    return make("div.look", {}, frame, walk, explain, said);
  }

  doing(cell) {
    const { book } = this.room;
    if (this.room.isLocked) return null;
    const choose = make("select", { id: "detail-class", onchange: () => choose.value && this.room.label(choose.value, false) }, make("option", { value: "" }, t("detail.other")));
    for (const c of [...book.known, ...book.others]) choose.append(make("option", { value: c.code }, t("detail.class.key", { name: c.name, key: book.keys.get(c.code) })));
    return make("div.doing", {},
      cell.predicted && cell.label !== cell.predicted ? button(t("detail.accept", { name: book.name(cell.predicted) }), () => this.room.act({ accept: true }), { dataset: { act: "accept" }, className: "main" }) : null,
      make("label.unseen", { for: "detail-class" }, t("detail.class")), choose,
      button(t(cell.excluded ? "detail.include" : "detail.exclude"), () => this.room.act({ excluded: !cell.excluded }), { dataset: { act: "exclude" } }),
      cell.label !== null ? button(t("detail.unlabel"), () => this.room.act({ label: null }), { dataset: { act: "unlabel" } }) : null);
  }

  bars(cell) {
    if (!cell.probabilities) return null;
    const { book } = this.room;
    const order = book.codes.map((code, i) => [code, cell.probabilities[i]]).sort((a, b) => b[1] - a[1]);
    const rows = order.map(([code, p]) => {
      const bar = make("span.bar");
      bar.style.width = `${100 * p}%`;
      bar.style.background = book.classes.get(code).colour;
      return make("tr", {}, make("th", { scope: "row" }, book.name(code)), make("td.number", {}, percent(p)), make("td.barcell", {}, bar));
    });
    return make("table.bars", {}, make("caption", {}, t("detail.probabilities")), make("tbody", {}, ...rows));
  }

  set(cell) {
    if (cell.status !== "ready") return null;
    const names = cell.conformal_set === null ? t("detail.set.none") : cell.conformal_set.map((c) => this.room.book.name(c)).join(", ") || t("detail.set.empty");
    return make("p", {}, make("b", {}, `${t("detail.set")}: `), names);
  }

  history() {
    const list = make("ul");
    const number = this.number;
    const node = make("details.history", { ontoggle: async () => {
      if (!node.open) return;
      const { events } = await getHistory(this.room.caseId, number);
      const lines = events.map((e) => make("li", {}, `${moment(e.at)}: ${t(`action.${e.action}`, { by: e.by, to: this.room.book.name(e.after?.label) })}`));
      replace(list, ...(lines.length ? lines : [make("li", {}, t("detail.history.none"))]));
    } });
    node.append(make("summary", {}, t("detail.history")), list);
    return node;
  }

  file(cell) {
    const size = t("detail.size", { width: cell.width, height: cell.height });
    return make("p.file", {}, cell.file_name ? `${t("detail.file")}: ${cell.file_name}, ${size}` : size);
  }
}
