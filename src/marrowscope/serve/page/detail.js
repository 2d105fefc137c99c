// One cell large: its picture with the explanation over it, the keys of the classes, probabilities, conformal set,
// similar cells, history.

import { cellUrl, getHistory, getPicture } from "./api.js";
import { keyButton } from "./counts.js";
import { button, make, openDialog, replace } from "./dom.js";
import { Similar } from "./similar.js";
import { moment, percent, t } from "./text.js";
import { describe } from "./wall.js";

export class Detail {
  // `room` gives book, caseId, isLocked, modelLoaded, model, act(change), label(code), go(steps).
  constructor(room) {
    this.room = room;
    this.dialog = null;
    this.number = null;
    this.heat = { number: null, url: null };
    this.similar = new Similar(room);
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
      this.forget();
      this.room.closed();
    });
    this.draw();
  }

  // Draw it anew if it shows this cell.
  refresh(number) {
    if (this.dialog && number === this.number) this.draw();
  }

  draw() {
    const cell = this.room.book.byNumber.get(this.number);
    if (this.heat.number !== this.number) this.forget();
    this.dialog.querySelector("h2").textContent = t("detail.head", { number: this.number });
    const focused = document.activeElement?.dataset?.act;
    const historyOpen = this.body.querySelector(".history")?.open && this.drawnNumber === this.number;
    this.drawnNumber = this.number;
    replace(this.body,
      this.picture(cell),
      make("div.facts", {}, make("p.what", {}, describe(this.room.book, cell)), this.doing(cell), this.bars(cell), this.set(cell), this.history(historyOpen), this.file(cell)));
    if (focused) this.body.querySelector(`[data-act="${focused}"]`)?.focus();
    if (!this.dialog.contains(document.activeElement)) this.body.focus();
  }

  picture(cell) {
    const image = make("img", { src: cellUrl(this.room.caseId, cell.number, "picture"), alt: t("detail.picture", { number: cell.number }), width: cell.width, height: cell.height });
    const frame = make("div.frame", {}, image);
    const said = make("p.explained", { role: "status" });
    const name = this.room.book.name(cell.predicted);
    const toggle = button(t("detail.explain"), () => (this.heat.url ? this.hide(cell) : this.explain(cell, said)), {
      dataset: { act: "explain" },
      disabled: cell.status !== "ready" || !this.room.modelLoaded,
      "aria-pressed": String(this.heat.url !== null),
    });
    if (this.heat.url) {
      frame.append(make("img.heat", { alt: "", src: this.heat.url }));
      said.textContent = t("detail.explained", { name });
    }
    const walk = make("div.walk", {},
      button("←", () => this.room.go(-1), { "aria-label": t("detail.previous"), dataset: { act: "previous" } }),
      toggle,
      button("→", () => this.room.go(1), { "aria-label": t("detail.next"), dataset: { act: "next" } }));
    return make("div.look", {}, frame, walk, said, this.similar.node(cell));
  }

  // Lay over the picture what the answer rests on.
  async explain(cell, said) {
    said.textContent = t("detail.explaining");
    try {
      const blob = await getPicture(`${cellUrl(this.room.caseId, cell.number, "explanation")}?class=${cell.predicted}`);
      if (!this.dialog || this.number !== cell.number) return;
      this.forget();
      this.heat = { number: cell.number, url: URL.createObjectURL(blob) };
      this.draw();
    } catch (error) {
      said.textContent = t("error.unknown", { message: error.message });
    }
  }

  hide(cell) {
    this.forget();
    this.refresh(cell.number);
  }

  forget() {
    if (this.heat.url) URL.revokeObjectURL(this.heat.url);
    this.heat = { number: null, url: null };
  }

  doing(cell) {
    const { book } = this.room;
    if (this.room.isLocked) return null;
    const keys = book.known.map((c) => keyButton(book, c, () => this.room.label(c.code)));
    for (const key of keys) key.setAttribute("aria-pressed", String(key.dataset.code === cell.label));
    const accept = cell.predicted && cell.label !== cell.predicted;
    return make("div.doing", {},
      make("div.keys", { role: "group", "aria-label": t("detail.class") }, ...keys),
      make("div.row", {},
        accept ? button(t("detail.accept", { name: book.name(cell.predicted) }), () => this.room.act({ accept: true }, true), { dataset: { act: "accept" }, className: "main" }) : null,
        book.others.length ? this.others() : null,
        button(t(cell.excluded ? "detail.include" : "detail.exclude"), () => this.room.act({ excluded: !cell.excluded }), { dataset: { act: "exclude" } }),
        cell.label !== null ? button(t("detail.unlabel"), () => this.room.act({ label: null }), { dataset: { act: "unlabel" } }) : null));
  }

  // Classes that the model does not know.
  others() {
    const { book } = this.room;
    const choose = make("select", { "aria-label": t("detail.other"), onchange: () => choose.value && this.room.label(choose.value) }, make("option", { value: "" }, t("detail.other")));
    for (const c of book.others) choose.append(make("option", { value: c.code }, t("detail.class.key", { name: c.name, key: book.keys.get(c.code) })));
    return choose;
  }

  bars(cell) {
    if (!cell.probabilities) return null;
    const { book } = this.room;
    const order = book.codes.map((code, i) => [code, cell.probabilities[i]]).sort((a, b) => b[1] - a[1]);
    const rows = order.map(([code, p]) => {
      const bar = make("span.bar");
      bar.style.width = `${100 * p}%`;
      bar.style.background = book.colour(code);
      return make("tr", {}, make("th", { scope: "row" }, book.name(code)), make("td.number", {}, percent(p)), make("td.barcell", {}, bar));
    });
    return make("table.bars", {}, make("caption", {}, t("detail.probabilities")), make("tbody", {}, ...rows));
  }

  set(cell) {
    if (cell.status !== "ready") return null;
    const names = cell.conformal_set === null ? t("detail.set.none") : cell.conformal_set.map((c) => this.room.book.name(c)).join(", ") || t("detail.set.empty");
    const alpha = this.room.model?.conformal_alpha;
    const title = cell.conformal_set !== null && alpha ? t("detail.set.level", { percent: percent(1 - alpha) }) : t("detail.set");
    return make("p", {}, make("b", {}, `${title}: `), names);
  }

  history(open) {
    const list = make("ul");
    const number = this.number;
    const node = make("details.history", { ontoggle: async () => {
      if (!node.open) return;
      try {
        const { events } = await getHistory(this.room.caseId, number);
        const lines = events.map((e) => make("li", {}, `${moment(e.at)}: ${t(`action.${e.action}`, { by: e.by, to: this.room.book.name(e.after?.label) })}`));
        replace(list, ...(lines.length ? lines : [make("li", {}, t("detail.history.none"))]));
      } catch (error) {
        replace(list, make("li", {}, t("error.unknown", { message: error.message })));
      }
    } });
    node.append(make("summary", {}, t("detail.history")), list);
    node.open = Boolean(open);
    return node;
  }

  file(cell) {
    const size = t("detail.size", { width: cell.width, height: cell.height });
    return make("p.file", {}, cell.file_name ? `${t("detail.file")}: ${cell.file_name}, ${size}` : size);
  }
}
