"use strict";
const report = (() => {
  const PAGE = 60;
  const byId = (id) => document.getElementById(id);
  const { codes, names, cells: raw } = JSON.parse(byId("cells-data").textContent);
  const cells = raw.map(([path, truth, likeliest, sure, picture, at], place) => {
    const [predicted, confidence] = likeliest[0];
    const right = truth === predicted;
    const sign = right ? "✓" : "✗";
    const answer = `${codes[truth]} → ${codes[predicted]}, ${sure}`;
    const words = right
      ? `${names[truth]}, recognised with ${sure} confidence`
      : `${names[truth]}, taken for ${names[predicted]} with ${sure} confidence`;
    const text = `${path} ${answer} ${words}`.replaceAll("\u00a0", " ").toLowerCase();
    return { path, truth, predicted, confidence, likeliest, right, sign, answer, words, text, picture, at, place };
  });
  const filters = {
    truth: byId("f-truth"), predicted: byId("f-predicted"), answer: byId("f-answer"),
    order: byId("f-order"), text: byId("f-text"),
  };
  const list = byId("g-cells");
  let found = cells;
  let page = 0;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const source = (cell) => `data:image/jpeg;base64,${cell.picture}`;

  // ------------------------------------------------------------------------------------------------- gallery

  const figure = (cell) => {
    const item = element("li");
    const button = element("button", `cell ${cell.right ? "is-right" : "is-wrong"}`);
    button.type = "button";
    button.title = cell.path;
    if (cell.picture) {
      const image = element("img");
      image.src = source(cell);
      image.alt = "";
      image.width = image.height = 84;
      button.append(image);
    } else {
      button.append(element("span", "nopicture", "no picture"));
    }
    const caption = element("span", "caption");
    caption.append(element("span", `sign ${cell.right ? "right" : "wrong"}`, cell.sign), ` ${cell.answer}`);
    button.append(caption);
    button.setAttribute("aria-label", `${cell.sign} ${cell.answer}: ${cell.words}${cell.picture ? "" : "; no picture"}`);
    button.addEventListener("click", () => zoom(cell));
    item.append(button);
    return item;
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(figure));
    byId("g-page").textContent = `page ${page + 1} of ${pages}`;
    byId("g-previous").disabled = page === 0;
    byId("g-next").disabled = page === pages - 1;
    byId("g-pager").hidden = pages === 1;
  };

  const number = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

  const apply = () => {
    const { truth, predicted, answer, order, text } = filters;
    const wanted = text.value.trim().toLowerCase().replace(/\s*(->|→)\s*/g, " → ");
    found = cells.filter((cell) =>
      (truth.value === "" || cell.truth === Number(truth.value)) &&
      (predicted.value === "" || cell.predicted === Number(predicted.value)) &&
      (answer.value === "" || cell.right === (answer.value === "right")) &&
      (wanted === "" || cell.text.includes(wanted)));
    if (order.value) {
      const sign = order.value === "sure" ? -1 : 1;
      found = [...found].sort((a, b) => sign * (a.confidence - b.confidence) || a.place - b.place);
    }
    page = 0;
    const right = found.filter((cell) => cell.right).length;
    const chosen = [
      truth.value === "" ? "" : `truth ${names[truth.value]}`,
      predicted.value === "" ? "" : `predicted ${names[predicted.value]}`,
    ].filter(Boolean).join(", ");
    byId("g-status").textContent = found.length
      ? `${number(found.length, "cell", "cells")}${chosen ? ` with ${chosen}` : ""}: ✓ ${right.toLocaleString("en")} right, ✗ ${(found.length - right).toLocaleString("en")} wrong`
      : "No cell fits this filter.";
    show();
  };

  const choosePair = (truth, predicted) => {
    byId("filters").reset();
    filters.truth.value = String(codes.indexOf(truth));
    filters.predicted.value = String(codes.indexOf(predicted));
    apply();
    const heading = byId("h-gallery");
    heading.focus({ preventScroll: true });
    heading.scrollIntoView();
  };

  const clinical = codes.map((code, i) => [i, `${code} ${names[i]}`]);
  for (const select of [filters.truth, filters.predicted]) {
    for (const [value, label] of clinical) {
      const option = element("option", "", label);
      option.value = String(value);
      select.append(option);
    }
  }
  for (const control of Object.values(filters)) control.addEventListener("input", apply);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(apply));
  const turn = (by) => {
    page += by;
    show();
    byId("g-status").scrollIntoView({ block: "nearest" });
  };
  byId("g-previous").addEventListener("click", () => turn(-1));
  byId("g-next").addEventListener("click", () => turn(1));

  const zoom = (cell) => {
    byId("zoom-title").textContent = `${cell.sign} ${cell.answer}`;
    byId("zoom-file").textContent = cell.path;
    const image = byId("zoom-picture");
    image.hidden = !cell.picture;
    if (cell.picture) image.src = source(cell);
    image.alt = cell.words;
    byId("zoom-likeliest").replaceChildren(...cell.likeliest.map(([code, share]) => {
      const row = element("tr");
      const head = element("th", "", `${codes[code]} ${names[code]}${code === cell.truth ? " (truth)" : ""}`);
      head.scope = "row";
      row.append(head, element("td", "num", share.toFixed(3)));
      return row;
    }));
    byId("zoom").showModal();
  };
  byId("zoom").addEventListener("click", (event) => {
    if (event.target === byId("zoom")) byId("zoom").close();
  });

  // -------------------------------------------------------------------------------------------------- matrix

  const matrices = [...document.querySelectorAll("table.matrix")];
  for (const table of matrices) {
    const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((td) => td.querySelector("button")));
    const first = rows.flat().find(Boolean);
    if (first) first.tabIndex = 0;
    table.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      let r = rows.findIndex((row) => row.includes(event.target));
      if (!step || r < 0) return;
      event.preventDefault();
      let k = rows[r].indexOf(event.target);
      do {
        r += step[0];
        k += step[1];
      } while (rows[r] && k >= 0 && k < rows[r].length && !rows[r][k]);
      const next = rows[r] && rows[r][k];
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  for (const button of document.querySelectorAll("button[data-truth]")) {
    button.addEventListener("click", () => choosePair(button.dataset.truth, button.dataset.predicted));
  }
  // Of the radio buttons of a name, each shows one element; all are there without script and in print.
  const switched = (name, shown) => {
    const inputs = [...document.querySelectorAll(`input[name=${name}]`)];
    const choose = () => {
      for (const input of inputs) shown(input.value).classList.toggle("off", !input.checked);
    };
    for (const input of inputs) input.addEventListener("input", choose);
    choose();
  };

  // ------------------------------------------------------------------------------------------- sortable table

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = column === 0 ? head.getAttribute("aria-sort") === "ascending" : head.getAttribute("aria-sort") !== "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => Number(row.cells[column].dataset.value);
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // ---------------------------------------------------------------------------------------------------- print

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  document.documentElement.classList.add("js");
  switched("matrix", (id) => byId(id).parentElement);
  switched("map", byId);
  apply();
  return { byId, cells, element, source, zoom };
})();
