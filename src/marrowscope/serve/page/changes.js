// A person's changes, sent one after another: none is lost when the service is away for a while, and what somebody else
// did meanwhile is shown instead of being overwritten.

import { Offline, Refusal, ask, changeCell, getSession, undo } from "./api.js";
import { banner, say } from "./dom.js";
import { t } from "./text.js";

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

export class Changes {
  // `room` gives caseId, book, me, away, took(cells), undone(number), locked(), moved().
  constructor(room) {
    this.room = room;
    this.waiting = [];
    this.sending = false;
    this.offline = false;
  }

  // Whether a change of this cell is on its way.
  has(number) {
    return this.waiting.some((w) => w.number === number);
  }

  // Wait until everything is sent.
  async sent() {
    while (this.waiting.length) await pause(0.1);
  }

  add(number, change) {
    this.waiting.push({ number, change, tried: false });
    this.run();
  }

  undo() {
    this.waiting.push({ number: null });
    this.run();
  }

  async run() {
    if (this.sending) return;
    this.sending = true;
    while (this.waiting.length) {
      const item = this.waiting[0];
      try {
        await this.send(item);
        this.waiting.shift();
        this.online();
        this.room.moved();
      } catch (error) {
        if (!(await this.failed(item, error))) break;
      }
    }
    this.sending = false;
  }

  async send(item) {
    const { caseId, book } = this.room;
    if (item.number === null) {
      const { cells } = await undo(caseId);
      this.room.took(cells);
      this.room.undone(cells[0].number);
      return;
    }
    const version = book.byNumber.get(item.number).version;
    const { cells } = await changeCell(caseId, item.number, { version, ...item.change });
    this.room.took(cells);
  }

  // Deal with an error; false where nothing more can be sent.
  async failed(item, error) {
    if (error instanceof Offline && item.number === null) {
      this.waiting.shift(); // it may have been done, and doing it again would take back one change more
      banner(t("banner.undo"), { kind: "error", seconds: 8 });
      return true;
    }
    if (error instanceof Offline || [429, 503].includes(error.status)) {
      item.tried = true;
      this.offline = true;
      banner(t("banner.offline", { n: this.waiting.length }), { kind: "error" });
      await pause(error.retryAfter || 1.5);
      return true;
    }
    if (error.code === "csrf") {
      await getSession();
      return true;
    }
    this.waiting.shift();
    if (!(error instanceof Refusal)) throw error;
    this.online();
    if (error.code === "conflict") this.conflict(item, error.detail);
    else if (error.code === "signed") await this.room.locked();
    else if (error.code === "nothing_to_undo") say(t("said.nothing"));
    else banner(t("error.unknown", { message: error.message }), { kind: "error", seconds: 8 });
    if (item.number !== null && error.code !== "conflict") await this.asItIs(item.number);
    return error.status !== 401;
  }

  conflict(item, cells) {
    this.room.took(cells);
    const cell = cells[0];
    const mine = item.tried && cell.label_by === this.room.me && cell.label === (item.change?.label ?? cell.label);
    if (mine) return; // it had arrived, and only the answer was lost
    const text = t("said.conflict", { by: cell.label_by ?? "?", number: cell.number });
    say(text);
    banner(text, { kind: "error", seconds: 8 });
  }

  async asItIs(number) {
    const cell = await ask("GET", `/v1/cases/${this.room.caseId}/cells/${number}`);
    this.room.took([cell]);
  }

  // Say that all is well again, once nothing waits any more.
  online() {
    if (!this.offline || this.waiting.length) return;
    this.offline = this.room.away = false; // one word of it is enough
    banner(t("banner.back"), { seconds: 4 });
  }
}
