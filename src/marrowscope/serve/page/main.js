// Where the page begins: who is there, which view, which colours.

import * as api from "./api.js";
import { showCases } from "./cases.js";
import { banner, make, replace } from "./dom.js";
import { Room } from "./room.js";
import { loadText, t, translate } from "./text.js";

const app = { main: document.getElementById("main"), session: null, models: [], classes: [], room: null };
const THEMES = ["auto", "light", "dark"];

function showTheme() {
  const theme = THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto";
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = t(`theme.${theme}`);
  return theme;
}

function nextTheme() {
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(showTheme()) + 1) % THEMES.length]);
  showTheme();
}

async function askToken() {
  const token = make("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
  // Browsers and their keepers of passwords want a name beside a password.
  const name = make("input", { type: "text", autocomplete: "username", value: "marrowscope", hidden: true, tabIndex: -1 });
  const said = make("p.error", { role: "alert" });
  const go = async (event) => {
    event.preventDefault();
    try {
      app.session = await api.enter(token.value);
      await begin();
    } catch (error) {
      said.textContent = error.message;
    }
  };
  replace(app.main, make("form.new", { onsubmit: go }, make("h1", {}, t("token.head")), make("p", {}, t("token.text")),
    name, make("label", { for: "token" }, t("token.label")), token, said, make("button.main", { type: "submit" }, t("token.go"))));
  token.focus();
}

async function begin() {
  const { models, classes } = await api.getModels();
  Object.assign(app, { models, classes });
  const { name, role, tokens_needed: needed } = app.session;
  document.getElementById("who").textContent = needed ? t("who", { name, role }) : "";
  document.getElementById("leave").hidden = app.session.csrf === null;
  const drawn = models.find((m) => m.synthetic);
  if (drawn) banner(t("synthetic", { name: drawn.name }));
  await show();
}

async function show({ moved = false } = {}) {
  if (app.session === null) return;
  app.room?.end();
  app.room = null;
  const id = /^#\/case\/([0-9a-f-]{36})$/.exec(location.hash)?.[1];
  try {
    if (id) {
      app.room = new Room(app, id);
      await app.room.start();
      if (!app.room.modelLoaded) banner(t("model.gone", { name: app.room.case.model_name }), { kind: "error" });
    } else {
      await showCases(app);
    }
  } catch (error) {
    if (error.status === 401) return askToken();
    app.room = null;
    replace(app.main, make("p.error", { role: "alert" }, error.message), make("a", { href: "#/" }, t("room.back")));
  }
  if (moved && !app.main.contains(document.activeElement)) app.main.focus({ preventScroll: true });
}

await loadText();
translate(document);
document.title = `marrowscope ${t("title").toLowerCase()}`;
showTheme();
document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("leave").addEventListener("click", async () => {
  await api.leave();
  location.reload();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  app.main.focus();
});
window.addEventListener("hashchange", () => show({ moved: true }));
try {
  app.session = await api.getSession();
  await begin();
} catch (error) {
  if (error.status === 401) await askToken();
  else replace(app.main, make("p.error", { role: "alert" }, error.message));
}
