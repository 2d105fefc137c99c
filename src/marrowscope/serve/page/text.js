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

// The value of a figure: "12.5".
export const value = (f, digits = 1) => (f.value === null ? t("count.unknown") : f.value.toFixed(digits));

// Its interval: "10.1–15.2".
export function interval(f, digits = 1) {
  const end = (v) => (v === null ? "∞" : v.toFixed(digits));
  return f.low === null ? "" : `${end(f.low)}–${end(f.high)}`;
}

// Both: "12.5 (10.1–15.2)".
export function figure(f, digits = 1) {
  if (f === null || f.value === null) return t("count.unknown");
  return f.low === null ? value(f, digits) : `${value(f, digits)} (${interval(f, digits)})`;
}

export const moment = (iso) => new Date(iso).toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
