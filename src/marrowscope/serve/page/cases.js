// The list of cases, and starting one.

import * as api from "./api.js";
import { confirmDialog } from "./dialogs.js";
import { banner, button, make, replace } from "./dom.js";
import { moment, t } from "./text.js";

export async function showCases(app) {
  const mayChange = app.session.role !== "reader";
  const body = make("tbody");
  const more = button(t("cases.more"), () => load(), { hidden: true });
  const none = make("p", { hidden: true }, t("cases.none"));
  const columns = ["name", "state", "cells", "reviewed", "by", "at", ...(mayChange ? ["do"] : [])];
  const head = make("tr", {}, ...columns.map((c) => make("th", { scope: "col" }, t(`cases.column.${c}`))));
  const table = make("div.scroll", {}, make("table.cases", {}, make("thead", {}, head), body));
  let offset = 0;

  async function load() {
    const page = await api.getCases(offset);
    offset += page.cases.length;
    body.append(...page.cases.map(row));
    more.hidden = offset >= page.total;
    none.hidden = page.total > 0;
    table.hidden = page.total === 0;
  }

  function row(c) {
    const node = make("tr", { dataset: { id: c.id } },
      make("th", { scope: "row" }, make("a", { href: `#/case/${c.id}` }, c.name)),
      make("td", {}, make("span.state", { dataset: { state: c.state } }, t(`state.${c.state}`))),
      make("td.number", {}, String(c.cells)), make("td.number", {}, String(c.reviewed)),
      make("td", {}, c.created_by), make("td", {}, moment(c.created_at)));
    const allowed = app.session.role === "admin" || (c.state === "open" && c.created_by === app.session.name);
    if (mayChange) node.append(make("td", {}, allowed ? button(t("cases.delete"), () => remove(c, node), { className: "quiet", "aria-label": t("cases.delete.of", { name: c.name }) }) : ""));
    return node;
  }

  async function remove(c, node) {
    if (!(await confirmDialog(t("cases.delete.head"), t("cases.delete.text", { name: c.name, cells: c.cells }), t("cases.delete")))) return;
    try {
      await api.deleteCase(c.id);
      node.remove();
      offset -= 1;
    } catch (error) {
      banner(t("error.unknown", { message: error.message }), { kind: "error", seconds: 8 });
    }
  }

  replace(app.main, make("h1", {}, t("cases.head")), mayChange ? form(app) : null, none, table, more);
  await load();
}

function form(app) {
  const name = make("input", { id: "new-name", required: true, maxLength: 200, autocomplete: "off" });
  const model = make("select", { id: "new-model" }, ...app.models.map((m) => make("option", { value: m.sha256 }, m.name)));
  const several = app.models.length > 1;
  const start = async (event) => {
    event.preventDefault();
    try {
      const made = await api.makeCase(name.value, several ? model.value : null);
      location.hash = `#/case/${made.id}`;
    } catch (error) {
      banner(t("error.unknown", { message: error.message }), { kind: "error", seconds: 8 });
    }
  };
  return make("form.new", { onsubmit: start },
    make("h2", {}, t("cases.new")),
    make("label", { for: "new-name" }, t("cases.name")), name,
    several ? make("label", { for: "new-model" }, t("cases.model")) : null, several ? model : null,
    make("button.main", { type: "submit" }, t("cases.go")));
}
