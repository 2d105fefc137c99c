// All words of the page stand in one file, so that it can be translated.

let words = {};

export async function loadText(language = "en") {
  const answer = await fetch(`/page/${language}.json`);
  words = await answer.json();
}

// The text of this name, with {placeholders} filled in.
export function t(name, values = {}) {
  const text = words[name];
  if (text === undefined) throw new Error(`no text named ${name}`);
  return text.replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

// Fill in what the HTML names with data-t.
export function translate(root) {
  for (const node of root.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
}

export const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0995 ? 1 : 0)} %`;

// A figure with its interval: "12.5 (10.1–15.2)".
export function figure(f, digits = 1) {
  if (f.value === null) return t("count.unknown");
  const end = (v) => (v === null ? "∞" : v.toFixed(digits));
  return f.low === null ? f.value.toFixed(digits) : `${f.value.toFixed(digits)} (${end(f.low)}–${end(f.high)})`;
}

export const moment = (iso) => new Date(iso).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
