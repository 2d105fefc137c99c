// One case: the wall of its cells, the differential beside it, and the keyboard that names cells.

import * as api from "./api.js";
import { CellBook } from "./cells.js";
import { Changes } from "./changes.js";
import { Counts } from "./counts.js";
import { Detail } from "./detail.js";
import { helpDialog, reopenDialog, signDialog } from "./dialogs.js";
import { banner, button, make, replace, say, typing } from "./dom.js";
import { moment, t } from "./text.js";
import { dropZone } from "./upload.js";
import { Wall, describe } from "./wall.js";

const SLOW = 2500;
const FAST = 600; // while cells wait for the model
const ADJUST = 1500; // after the last change, adjusted counts are asked for: they take their time

export class Room {
  // `app` gives session, models, classes, main.
  constructor(app, caseId) {
    Object.assign(this, { app, caseId, me: app.session.name, only: "all", unseen: false, version: 0, counted: -1, ended: false });
    this.mayChange = app.session.role !== "reader";
  }

  async start() {
    this.case = await api.getCase(this.caseId);
    this.book = new CellBook(this.app.classes, this.case.codes);
    this.changes = new Changes(this);
    this.detail = new Detail(this);
    this.wall = new Wall(this.caseId, this.book, { choose: (n) => this.chosen(n), open: (n) => this.detail.open(n) });
    this.counts = new Counts(this.book, (code) => this.label(code));
    this.build();
    this.onkey = (event) => this.key(event);
    this.onkeyup = (event) => event.key === " " && this.spaced && event.preventDefault();
    document.addEventListener("keydown", this.onkey);
    document.addEventListener("keyup", this.onkeyup);
    this.onleave = (event) => this.changes.waiting.length && event.preventDefault();
    window.addEventListener("beforeunload", this.onleave);
    await this.poll();
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    clearTimeout(this.adjusting);
    this.wall.close();
    window.removeEventListener("beforeunload", this.onleave);
    document.removeEventListener("keydown", this.onkey);
    document.removeEventListener("keyup", this.onkeyup);
  }

  get isLocked() {
    return this.case.state === "signed" || !this.mayChange;
  }

  get modelLoaded() {
    return this.case.model_loaded;
  }

  // The case's model as the service describes it; undefined where it is not loaded.
  get model() {
    return this.app.models.find((m) => m.sha256 === this.case.model_sha256);
  }

  // ------------------------------------------------------------------------------------------------------- building

  build() {
    this.counts.locked = this.isLocked;
    this.shown = make("span.shown", { id: "shown" });
    const only = make("select", { id: "only", onchange: () => { this.only = only.value; this.sort(); } });
    this.onlyNode = only;
    const unseen = make("input", { type: "checkbox", id: "unseen", checked: this.unseen, onchange: () => { this.unseen = unseen.checked; this.sort(); } });
    const bar = make("div.bar", {},
      make("label", { for: "only" }, t("wall.show")), only,
      make("label.check", {}, unseen, t("wall.open")),
      button(t("wall.regroup"), () => this.sort(), { "aria-keyshortcuts": "/", id: "regroup" }), this.shown);
    this.empty = make("p.empty", { hidden: true });
    replace(this.app.main,
      this.head(),
      make("div.room", {},
        make("section.left", { "aria-labelledby": "wall-head" }, make("h2.unseen", { id: "wall-head" }, t("wall.head")), this.isLocked ? null : dropZone(this.caseId, this.app.session.limits, () => this.pollSoon()), bar, this.empty, this.wall.node),
        make("aside.right", { "aria-label": t("count.head") }, this.counts.node)));
  }

  head() {
    const signed = this.case.state === "signed";
    const last = this.case.signatures.at(-1);
    return make("div.casehead", {},
      make("a.backlink", { href: "#/" }, t("room.back")),
      make("h1", {}, this.case.name),
      make("span.state", { dataset: { state: this.case.state } }, t(`state.${this.case.state}`)),
      signed ? make("p.signed", {}, t("room.signed", { by: last.by, at: moment(last.at) })) : null,
      make("div.row", {},
        this.isLocked ? null : button(t("room.undo"), () => this.changes.undo(), { "aria-keyshortcuts": "z", id: "undo" }),
        button(t("room.help"), () => helpDialog(this.book), { "aria-keyshortcuts": "?", id: "help" }),
        this.exports(),
        signed || !this.mayChange ? null : button(t("room.sign"), () => this.sign(), { className: "main", id: "sign" }),
        signed && this.app.session.role === "admin" ? button(t("room.reopen"), () => this.reopen(), { id: "reopen" }) : null));
  }

  exports() {
    const names = make("input", { type: "checkbox", onchange: () => fill() });
    const list = make("ul");
    const fill = () => replace(list, ...["html", "pdf", "csv", "json", "fhir"].map((kind) =>
      make("li", {}, make("a", { href: api.exportUrl(this.caseId, kind, names.checked), download: "", dataset: { kind } }, t(`export.${kind}`)))));
    fill();
    const draft = this.case.state === "open" ? make("p.small", {}, t("room.draft")) : null;
    const node = make("details.menu", { id: "export" }, make("summary", {}, t("room.export")), make("div.sheet", {}, list, make("label.check", {}, names, t("room.names")), draft));
    node.addEventListener("focusout", (event) => { if (event.relatedTarget && !node.contains(event.relatedTarget)) node.open = false; });
    return node;
  }

  fillChoices() {
    const groups = this.book.groups();
    const label = (g) => (["ood", "failed", "pending", "excluded"].includes(g) ? t(`group.${g}`) : this.book.name(g));
    const options = groups.map(({ group, numbers }) => make("option", { value: group }, `${label(group)} (${numbers.length})`));
    if (this.only !== "all" && !groups.some((g) => g.group === this.only)) options.push(make("option", { value: this.only }, `${label(this.only)} (0)`));
    replace(this.onlyNode, make("option", { value: "all" }, t("wall.all")), ...options);
    this.onlyNode.value = this.only;
  }

  // ------------------------------------------------------------------------------------------------ what comes from the service

  async poll() {
    clearTimeout(this.timer);
    let pending = false;
    try {
      const { cells, version } = await api.getCells(this.caseId, this.version);
      if (this.ended) return;
      if (version !== this.version || this.version === 0) {
        const fresh = cells.filter((c) => !this.changes.has(c.number));
        const moved = this.book.take(fresh);
        if (cells.length === fresh.length) this.version = version;
        if (moved) this.arrange();
        else for (const c of fresh) this.drawn(c.number);
        await this.count();
      }
      pending = [...this.book.byNumber.values()].some((c) => c.status === "pending");
      await this.checkState(version);
      this.reached(true);
    } catch (error) {
      if (error instanceof api.Offline) this.reached(false);
      else if (error.status !== 429) {
        banner(t("error.unknown", { message: error.message }), { kind: "error", seconds: 8 });
      }
    }
    if (!this.ended) this.timer = setTimeout(() => this.poll(), pending ? FAST : SLOW);
  }

  // Say so when the service goes away, and when it is back; waiting changes have words of their own.
  reached(isThere) {
    if (isThere === !this.away || this.ended) return;
    this.away = !isThere;
    if (this.changes.waiting.length) return;
    if (isThere) banner(t("banner.again"), { seconds: 4 });
    else banner(t("banner.away"), { kind: "error" });
  }

  pollSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), 50);
  }

  // Another person may have signed or reopened the case.
  async checkState(version) {
    if (version === this.checked) return;
    this.checked = version;
    const now = await api.getCase(this.caseId);
    const changed = now.state !== this.case.state || now.revision !== this.case.revision;
    this.case = now;
    if (changed && !this.ended) this.rebuild();
  }

  rebuild() {
    this.build();
    this.arrange();
    this.counted = -1;
    this.count();
  }

  async count() {
    const summary = await api.getDifferential(this.caseId, false);
    if (this.ended || summary.case_version <= this.counted) return;
    this.counted = summary.case_version;
    this.withFocus(() => this.counts.show(summary));
    clearTimeout(this.adjusting);
    this.adjusting = setTimeout(() => this.adjust(), ADJUST);
  }

  async adjust() {
    try {
      const summary = await api.getDifferential(this.caseId);
      if (!this.ended) this.withFocus(() => this.counts.adjust(summary));
    } catch {
      if (!this.ended) this.adjusting = setTimeout(() => this.adjust(), 4 * ADJUST);
    }
  }

  // Draw the differential anew; what had the focus in it has it again.
  withFocus(draw) {
    const inside = this.counts.node.contains(document.activeElement);
    const { code } = inside ? document.activeElement.dataset : {};
    const part = inside && document.activeElement.matches("summary") ? document.activeElement.parentNode.className : null;
    draw();
    if (code) this.counts.node.querySelector(`.key[data-code="${code}"]`)?.focus();
    else if (part) this.counts.node.querySelector(`details.${part} > summary`)?.focus();
  }

  // Cells as the service has them after a change of ours.
  took(cells) {
    this.book.take(cells);
    for (const c of cells) this.drawn(c.number);
  }

  moved() {
    this.fillChoices();
    this.count().catch(() => this.pollSoon());
  }

  async locked() {
    say(t("said.locked"));
    banner(t("said.locked"), { seconds: 6 });
    this.checked = -1;
    this.pollSoon();
  }

  drawn(number) {
    this.wall.refresh(number);
    this.detail.refresh(number);
  }

  // Sort anew, and begin at the top.
  sort() {
    this.arrange(true);
  }

  arrange(restart = false) {
    const groups = this.book.groups({ only: this.only, unseen: this.unseen });
    const shown = groups.reduce((n, g) => n + g.numbers.length, 0);
    if (restart) this.wall.restart(groups);
    else this.wall.arrange(groups);
    this.fillChoices();
    const total = this.book.byNumber.size;
    this.shown.textContent = t("wall.count", { shown, total });
    this.empty.hidden = shown > 0;
    this.empty.textContent = t(total ? "wall.nothing" : "wall.empty");
  }

  // ---------------------------------------------------------------------------------------------------- what a person does

  chosen(number) {
    const cell = this.book.byNumber.get(number);
    say(t("cell.said", { number, what: describe(this.book, cell) }));
    if (this.detail.isOpen) this.detail.open(number);
  }

  closed() {
    this.wall.select(this.wall.current);
  }

  // Go back to the cell whose change was taken back, so that the right key can follow.
  undone(number) {
    say(t("said.undone", { number }));
    this.wall.select(number, { focus: !this.detail.isOpen });
  }

  go(steps) {
    this.wall.select(this.wall.beside(steps), { focus: !this.detail.isOpen });
  }

  label(code, further = true) {
    this.act({ label: code }, further);
  }

  // Change the chosen cell, and go on to the next. Where nobody picked one yet the first key only picks it: which cell stands
  // first may change as cells arrive, and no cell gets a name that was meant for another.
  act(change, further = false) {
    const number = this.wall.current;
    if (number === null || this.isLocked) return;
    if (!this.wall.picked) return this.wall.select(number, { focus: !this.detail.isOpen });
    const cell = this.book.byNumber.get(number);
    if (change.accept && !cell.predicted) return;
    const label = change.accept ? cell.predicted : change.label;
    const guess = { ...cell, ...("excluded" in change ? { excluded: change.excluded } : { label, label_by: label === null ? null : this.me }) };
    this.book.byNumber.set(number, guess); // shown at once; the service's word follows
    this.drawn(number);
    this.changes.add(number, change);
    if (further) this.go(1);
  }

  key(event) {
    this.spaced = false;
    const other = [...document.querySelectorAll("dialog[open]")].some((d) => d !== this.detail.dialog);
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || other) return;
    if (this.command(event)) event.preventDefault();
  }

  // Do what a key stands for; whether it stands for anything here.
  command(event) {
    const onButton = event.target.closest("button:not(.tile), a, summary, input") !== null;
    const { key } = event;
    const moves = { ArrowLeft: () => this.wall.beside(-1), ArrowRight: () => this.wall.beside(1), ArrowUp: () => this.wall.across(-1), ArrowDown: () => this.wall.across(1) };
    if (key in moves) {
      this.wall.select(moves[key](), { focus: !this.detail.isOpen });
      return true;
    }
    if (key === " " && !onButton) {
      this.spaced = true;
      this.act({ accept: true }, true);
      return true;
    }
    if (key === "Enter" && !onButton && !this.detail.isOpen && this.wall.current !== null) {
      this.detail.open(this.wall.current);
      return true;
    }
    if (key === "?") return Boolean(helpDialog(this.book));
    if (key === "/") return this.sort() ?? true;
    if (this.isLocked) return false;
    if (key === "z") return this.changes.undo() ?? true;
    if (key === "x") return this.act({ excluded: !this.book.byNumber.get(this.wall.current)?.excluded }) ?? true;
    const code = this.book.codeOfKey.get(key.toLowerCase());
    if (code === undefined) return false;
    this.label(code);
    return true;
  }

  async sign() {
    await this.changes.sent(); // what is signed is what the service has
    const signed = await signDialog(this.caseId, this.book);
    if (signed) this.become(signed);
  }

  async reopen() {
    const open = await reopenDialog(this.caseId);
    if (open) this.become(open);
  }

  become(now) {
    this.case = now;
    this.rebuild();
  }
}
