(() => {
  const { byId, cells, element, source, zoom } = report;
  const panel = byId("map-cell");
  if (!panel) return;
  const SVG = "http://www.w3.org/2000/svg";
  const placed = cells.filter((cell) => cell.at);
  const stages = [...document.querySelectorAll(".map-stage")];
  const rings = [];
  let chosen = null;

  const show = (cell, speak) => {
    chosen = cell;
    for (const ring of rings) {
      ring.setAttribute("cx", cell.at[0]);
      ring.setAttribute("cy", cell.at[1]);
      ring.removeAttribute("visibility");
    }
    const button = element("button", `cell ${cell.right ? "is-right" : "is-wrong"}`);
    button.type = "button";
    if (cell.picture) {
      const image = element("img");
      image.src = source(cell);
      image.alt = "";
      button.append(image);
    } else {
      button.append(element("span", "nopicture", "no picture"));
    }
    const caption = element("span", "caption");
    caption.append(element("span", `sign ${cell.right ? "right" : "wrong"}`, cell.sign), ` ${cell.answer}`);
    button.append(caption);
    button.setAttribute("aria-label", `Open: ${cell.sign} ${cell.answer}: ${cell.words}`);
    button.addEventListener("click", () => zoom(cell));
    panel.replaceChildren(button, element("p", "path", cell.path));
    if (speak) byId("map-status").textContent = `${cell.words}; ${cell.path}`;
  };

  const nearest = (x, y, most) => {
    let best = null;
    let least = most * most;
    for (const cell of placed) {
      const away = (cell.at[0] - x) ** 2 + (cell.at[1] - y) ** 2;
      if (away < least) {
        best = cell;
        least = away;
      }
    }
    return best;
  };

  // The next cell in a direction: near, and not far off to the side.
  const beside = (from, dx, dy) => {
    let best = null;
    let least = Infinity;
    for (const cell of placed) {
      const along = (cell.at[0] - from.at[0]) * dx + (cell.at[1] - from.at[1]) * dy;
      const aside = Math.abs((cell.at[0] - from.at[0]) * dy) + Math.abs((cell.at[1] - from.at[1]) * dx);
      if (cell === from || along <= 0 || aside > 2 * along) continue;
      if (along + 2 * aside < least) {
        best = cell;
        least = along + 2 * aside;
      }
    }
    return best;
  };

  const where = (svg, event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return nearest(point.x, point.y, 14);
  };

  const pressed = (event) => {
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (event.key === "Enter" && chosen) zoom(chosen);
    if (!step && event.key !== "Enter") return;
    event.preventDefault();
    if (!step) return;
    const next = chosen ? beside(chosen, ...step) : nearest(200, 200, Infinity);
    if (next) show(next, true);
  };

  for (const stage of stages) {
    const svg = stage.querySelector("svg");
    const ring = document.createElementNS(SVG, "circle");
    for (const [name, value] of Object.entries({ class: "ring", r: 8, visibility: "hidden" })) ring.setAttribute(name, value);
    svg.append(ring);
    rings.push(ring);
    stage.tabIndex = 0;
    stage.setAttribute("role", "application");
    stage.setAttribute("aria-label", "Map of the cells: arrow keys go to the next cell, Enter opens it");
    stage.addEventListener("keydown", pressed);
    svg.addEventListener("pointermove", (event) => {
      const cell = event.pointerType === "mouse" ? where(svg, event) : null;
      if (cell && cell !== chosen) show(cell, false);
    });
    svg.addEventListener("click", (event) => {
      const cell = where(svg, event);
      if (!cell) return;
      // With a mouse the cell is chosen already; a finger chooses first and opens with the second tap.
      if (cell === chosen) zoom(cell);
      else show(cell, true);
    });
  }
  if (!placed.length) panel.textContent = "No cell of the map is in the gallery.";
  else panel.textContent = "No cell chosen.";
})();
