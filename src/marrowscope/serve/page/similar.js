// The cells of the model's reference set that look most like this one to the model.

import { getSimilar } from "./api.js";
import { make, replace } from "./dom.js";
import { t } from "./text.js";

const SETTLED = 250; // milliseconds that a cell must be looked at before its like are looked for
const KEPT = 200; // cells whose like are remembered

export class Similar {
  // `room` gives book, caseId, model.
  constructor(room) {
    this.room = room;
    this.known = new Map();
  }

  // The part of the dialog for a cell; it fills itself.
  node(cell) {
    const inside = make("div.similar-cells");
    const node = make("section.similar", { "aria-labelledby": "similar-head" }, make("h3", { id: "similar-head" }, t("similar.head")), inside);
    clearTimeout(this.waiting);
    const { model } = this.room;
    if (!model || model.reference_cells === null) {
      replace(inside, make("p.small", {}, t(model ? "similar.none" : "similar.gone")));
    } else if (this.known.has(cell.number)) {
      this.fill(inside, this.known.get(cell.number));
    } else {
      replace(inside, make("p.small", {}, t("similar.looking")));
      this.waiting = setTimeout(() => this.look(cell, inside), SETTLED);
    }
    return node;
  }

  async look(cell, inside) {
    try {
      const { cells } = await getSimilar(this.room.caseId, cell.number);
      if (this.known.size >= KEPT) this.known.delete(this.known.keys().next().value);
      this.known.set(cell.number, cells);
      this.fill(inside, cells);
    } catch (error) {
      replace(inside, make("p.small", {}, t("error.unknown", { message: error.message })));
    }
  }

  fill(inside, cells) {
    const { book, model } = this.room;
    const items = cells.map(({ code, similarity, thumbnail }) => {
      const swatch = make("span.swatch", { "aria-hidden": "true" });
      swatch.style.background = book.colour(code);
      return make("li", {},
        make("img", { src: thumbnail, alt: t("similar.picture", { name: book.name(code) }), width: 92, height: 92, decoding: "async" }),
        make("span.tag", {}, swatch, code, make("span.small", {}, similarity.toFixed(2))));
    });
    replace(inside, make("ul", {}, ...items), make("p.small", {}, t("similar.text", { n: model.reference_cells })));
  }
}
