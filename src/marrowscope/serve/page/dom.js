// Making elements without any HTML text, so that nothing a person wrote can become markup.

// make("button.quiet", {type: "button", onclick}, "text", child, ...)
export function make(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name in node && !name.startsWith("aria") && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export const button = (text, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, text);

export function replace(node, ...children) {
  node.replaceChildren(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

// Tell people who do not see the page, and others in a banner where it matters.
export function say(text) {
  document.getElementById("said").textContent = text;
}

let clearing = 0;
export function banner(text, { kind = "note", seconds = 0 } = {}) {
  const node = document.getElementById("banner");
  clearTimeout(clearing);
  node.hidden = !text;
  node.textContent = text ?? "";
  node.dataset.kind = kind;
  if (text && seconds) clearing = setTimeout(() => banner(null), 1000 * seconds);
}

// A modal dialog with a heading; resolves when it closes. `fill(dialog)` gives its content.
export function openDialog(heading, fill, { wide = false } = {}) {
  const title = make("h2", { id: `d-${Math.random().toString(36).slice(2)}` }, heading);
  const dialog = make(wide ? "dialog.wide" : "dialog", { "aria-labelledby": title.id });
  dialog.append(title, ...fill(dialog));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

// Whether a person is typing, so that keys are text and no commands.
export function typing(target) {
  return target.closest?.("input:not([type=checkbox]), textarea, select, [contenteditable]") !== null;
}
