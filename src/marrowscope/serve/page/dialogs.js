// Signing out, reopening, deleting, and the list of keys.

import * as api from "./api.js";
import { figures, leftOut, summaryTable } from "./counts.js";
import { button, make, openDialog, replace } from "./dom.js";
import { t } from "./text.js";

// Sign what is shown; resolves to the signed case, or null.
export async function signDialog(caseId, book) {
  let signed = null;
  let summary = await api.getDifferential(caseId);
  const body = make("div");
  const said = make("p.error", { role: "alert" });
  const show = () => {
    const all = Object.values(summary.differential.left_out).reduce((a, b) => a + b, summary.differential.counted);
    const notes = [...summary.notes, ...summary.differential.warnings].map((n) => make("li", {}, n));
    replace(body,
      make("p", {}, t("sign.text", { reviewed: summary.reviewed, unseen: all - summary.reviewed })),
      make("p", { id: "sign-reviewed" }, t("count.reviewed", { n: summary.reviewed_nucleated, wanted: summary.wanted })),
      figures(summary.differential), summaryTable(book, summary), leftOut(summary), make("ul.small", {}, ...notes));
  };
  show();
  await openDialog(t("sign.head"), (dialog) => {
    const comment = make("textarea", { id: "sign-comment", rows: 3, maxLength: 4000 });
    const go = button(t("sign.go"), async () => {
      try {
        signed = await api.sign(caseId, summary.case_version, comment.value);
        dialog.close();
      } catch (error) {
        said.textContent = error.code === "conflict" ? t("sign.changed") : error.message;
        summary = await api.getDifferential(caseId);
        show();
      }
    }, { className: "main", id: "sign-go" });
    return [body, make("label", { for: "sign-comment" }, t("sign.comment")), comment, said, make("div.row", {}, button(t("cancel"), () => dialog.close()), go)];
  });
  return signed;
}

export async function reopenDialog(caseId) {
  let reopened = null;
  await openDialog(t("reopen.head"), (dialog) => {
    const reason = make("input", { id: "reopen-reason", maxLength: 200 });
    const said = make("p.error", { role: "alert" });
    const go = button(t("reopen.go"), async () => {
      try {
        reopened = await api.reopen(caseId, reason.value);
        dialog.close();
      } catch (error) {
        said.textContent = error.message;
      }
    }, { className: "main" });
    return [make("label", { for: "reopen-reason" }, t("reopen.reason")), reason, said, make("div.row", {}, button(t("cancel"), () => dialog.close()), go)];
  });
  return reopened;
}

// Whether the person means it.
export async function confirmDialog(heading, text, go) {
  const answer = await openDialog(heading, (dialog) => [
    make("p", {}, text),
    make("div.row", {}, button(t("cancel"), () => dialog.close("no")), button(go, () => dialog.close("yes"), { className: "danger" })),
  ]);
  return answer === "yes";
}

export function helpDialog(book) {
  const names = ["letter", "space", "arrows", "enter", "z", "x", "s", "question"];
  const rows = names.map((n) => make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, t(`help.${n}`))), make("td", {}, t(`help.${n}.does`))));
  const classes = [...book.known, ...book.others].map((c) => make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, book.keys.get(c.code))), make("td", {}, c.name)));
  return openDialog(t("help.head"), (dialog) => [
    make("div.columns", {}, make("table", {}, make("tbody", {}, ...rows)), make("table", {}, make("tbody", {}, ...classes))),
    make("div.row", {}, button(t("close"), () => dialog.close(), { className: "main" })),
  ]);
}
