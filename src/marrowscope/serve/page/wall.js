// The wall of cells: thousands of them, of which only the rows in sight exist as elements.

import { cellUrl } from "./api.js";
import { make, replace } from "./dom.js";
import { percent, t } from "./text.js";

const TILE = 104;
const ROW = 132;
const HEAD = 44;
const AHEAD = 400; // pixels above and below what is in sight
const SETTLED = 60; // milliseconds that a row must stay before its pictures are asked for
const AGAIN = [1000, 2000, 4000, 8000]; // when a picture that did not come is asked for again

export class Wall {
  // `choose(number)` is called when a cell is chosen, `open(number)` when it is to be seen large.
  constructor(caseId, book, { choose, open }) {
    Object.assign(this, { caseId, book, choose, open, current: null, picked: false, groups: [], rows: [], order: [], shown: new Map() });
    this.inside = make("div.wall-inside");
    this.node = make("div.wall", { role: "region", "aria-label": t("wall.head"), onscroll: () => this.drawSoon() }, this.inside);
    this.watching = new ResizeObserver(() => this.lay());
    this.watching.observe(this.node);
    this.inside.addEventListener("click", (event) => this.clicked(event));
    this.inside.addEventListener("focusin", (event) => this.focused(event));
  }

  close() {
    this.watching.disconnect();
    clearTimeout(this.loading);
  }

  // Stand the cells in this order. A cell that a person picked stays the chosen one; until then it is the first, whichever
  // that is while cells still arrive.
  arrange(groups) {
    this.groups = groups;
    this.order = groups.flatMap((g) => g.numbers);
    this.place = new Map(this.order.map((n, i) => [n, i]));
    this.picked &&= this.place.has(this.current);
    if (!this.picked) this.current = this.order[0] ?? null;
    this.lay(true);
  }

  // Stand the cells in this order and pick the first, in sight.
  restart(groups) {
    this.picked = false;
    this.node.scrollTop = 0;
    this.arrange(groups);
    this.picked = this.current !== null;
  }

  // Work out rows from the width.
  lay(anew = false) {
    const columns = Math.max(1, Math.floor((this.node.clientWidth - 8) / TILE));
    if (!anew && columns === this.columns) return this.drawSoon();
    this.columns = columns;
    this.rows = [];
    let top = 0;
    for (const { group, numbers } of this.groups) {
      this.rows.push({ top, height: HEAD, group, n: numbers.length });
      top += HEAD;
      for (let i = 0; i < numbers.length; i += columns) {
        this.rows.push({ top, height: ROW, numbers: numbers.slice(i, i + columns) });
        top += ROW;
      }
    }
    this.rowOf = new Map(this.rows.flatMap((row, r) => (row.numbers ?? []).map((n) => [n, r])));
    this.inside.style.height = `${top}px`;
    const held = this.inside.contains(document.activeElement) ? Number(document.activeElement.dataset.number) : null;
    this.shown.clear();
    replace(this.inside);
    this.draw(held);
    this.find(held)?.focus({ preventScroll: true }); // the tiles are new: the keyboard stays with its cell
  }

  drawSoon() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  // Draw the rows in sight, and the one of the cell `held`, wherever it is.
  draw(held = null) {
    const from = this.node.scrollTop - AHEAD;
    const to = this.node.scrollTop + this.node.clientHeight + AHEAD;
    let r = this.firstBelow(from);
    const wanted = new Set();
    for (; r < this.rows.length && this.rows[r].top < to; r++) wanted.add(r);
    if (this.rowOf?.has(held)) wanted.add(this.rowOf.get(held));
    for (const [index, node] of this.shown) {
      if (wanted.has(index) || node.contains(document.activeElement)) continue;
      node.remove();
      this.shown.delete(index);
    }
    for (const index of [...wanted].sort((a, b) => a - b)) {
      if (this.shown.has(index)) continue;
      const node = this.row(this.rows[index]);
      this.shown.set(index, node);
      const next = [...this.shown.keys()].filter((i) => i > index).sort((a, b) => a - b)[0];
      this.inside.insertBefore(node, next === undefined ? null : this.shown.get(next)); // reading order is screen order
    }
    clearTimeout(this.loading);
    this.loading = setTimeout(() => this.load(), SETTLED);
  }

  // Ask for the pictures of the rows that stand still; those that only flew past are never asked for.
  load() {
    for (const image of this.inside.querySelectorAll("img:not([src])")) image.src = image.dataset.src;
  }

  firstBelow(y) {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].top + this.rows[middle].height < y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  row(row) {
    const node = row.numbers ? make("div.tiles", {}, ...row.numbers.map((n) => this.tile(n))) : this.head(row);
    node.style.top = `${row.top}px`;
    node.style.height = `${row.height}px`;
    return node;
  }

  head({ group, n }) {
    const special = ["ood", "failed", "pending", "excluded"].includes(group);
    const name = special ? t(`group.${group}`) : this.book.name(group);
    return make("h3.group", { dataset: { group } }, this.swatch(special ? null : group), t("wall.group", { name, n }));
  }

  swatch(code) {
    const node = make("span.swatch", { "aria-hidden": "true" });
    if (code) node.style.background = this.book.classes.get(code).colour;
    return node;
  }

  // The element of a cell.
  tile(number) {
    const image = make("img", { alt: "", width: 92, height: 92, decoding: "async", dataset: { src: cellUrl(this.caseId, number, "thumbnail") } });
    let tries = 0;
    image.addEventListener("error", () => {
      if (tries < AGAIN.length) setTimeout(() => image.isConnected && (image.src = `${image.dataset.src}?again=${tries}`), AGAIN[tries++]);
    });
    const node = make("button.tile", { type: "button", dataset: { number } }, image, make("span.tag", { "aria-hidden": "true" }));
    return this.dress(node, number);
  }

  // Bring a tile up to date. It stays the same element, for it may have the focus or a finger on it.
  dress(node, number) {
    const cell = this.book.byNumber.get(number);
    const chosen = number === this.current;
    node.tabIndex = chosen ? 0 : -1;
    node.setAttribute("aria-label", t("cell.label", { number, what: describe(this.book, cell) }));
    if (chosen) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
    node.dataset.state = cell.excluded ? "excluded" : cell.label !== null ? "seen" : cell.status;
    replace(node.querySelector(".tag"), this.swatch(cell.label ?? cell.predicted), this.caption(cell));
    return node;
  }

  caption(cell) {
    if (cell.excluded) return "✕";
    if (cell.label !== null) return `✓ ${cell.label}`;
    if (cell.status !== "ready") return cell.status === "pending" ? "…" : "!";
    return `${cell.ood ? "? " : ""}${cell.predicted} ${percent(cell.confidence)}`;
  }

  // Draw one cell anew where it is in sight.
  refresh(number) {
    const node = this.find(number);
    if (node) this.dress(node, number);
  }

  find(number) {
    return this.shown.get(this.rowOf?.get(number))?.querySelector(`[data-number="${number}"]`) ?? null;
  }

  // Choose a cell and bring it into sight; with `focus` the keyboard goes there too.
  select(number, { focus = true } = {}) {
    if (number === null || !this.place?.has(number)) return;
    const before = this.current;
    this.current = number;
    this.picked = true;
    if (before !== null && before !== number) this.refresh(before);
    const row = this.rows[this.rowOf.get(number)];
    const { scrollTop, clientHeight } = this.node;
    if (row.top < scrollTop + HEAD) this.node.scrollTop = row.top - HEAD;
    else if (row.top + row.height > scrollTop + clientHeight) this.node.scrollTop = row.top + row.height - clientHeight + 8;
    this.draw();
    this.refresh(number);
    if (focus) this.find(number)?.focus({ preventScroll: true });
    this.choose(number);
  }

  // The cell `steps` further in the order, or this one at the ends.
  beside(steps) {
    const at = this.place?.get(this.current);
    if (at === undefined) return null;
    return this.order[Math.min(this.order.length - 1, Math.max(0, at + steps))];
  }

  // The cell above (-1) or below (1).
  across(direction) {
    let r = this.rowOf?.get(this.current);
    if (r === undefined) return null;
    const column = this.rows[r].numbers.indexOf(this.current);
    for (r += direction; r >= 0 && r < this.rows.length; r += direction) {
      const { numbers } = this.rows[r];
      if (numbers) return numbers[Math.min(column, numbers.length - 1)];
    }
    return this.current;
  }

  clicked(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    this.select(Number(tile.dataset.number));
    this.open(this.current);
  }

  focused(event) {
    const number = Number(event.target.closest(".tile")?.dataset.number);
    if (number && number !== this.current) this.select(number);
    else if (number) this.picked = true;
  }
}

// A cell in words.
export function describe(book, cell) {
  const parts = [];
  if (cell.excluded) parts.push(t("cell.excluded"));
  if (cell.label !== null) parts.push(t("cell.labelled", { name: book.name(cell.label), by: cell.label_by }));
  else if (cell.status === "ready") parts.push(t("cell.model", { name: book.name(cell.predicted), percent: percent(cell.confidence) }));
  else parts.push(t(`cell.${cell.status}`));
  if (cell.ood && cell.label === null) parts.push(t("cell.ood"));
  return parts.join(", ");
}
