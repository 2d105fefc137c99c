// The drop zone: any number of files, sent some at a time; what the case has already is not sent again, so an upload
// that broke off goes on where it was.

import { Offline, Refusal, getMissing, getSession, upload } from "./api.js";
import { banner, button, make, replace, say } from "./dom.js";
import { t } from "./text.js";

const HASHED = 64; // files looked at before the service is asked which it lacks
const MOST_BYTES = 12_000_000;
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

export function dropZone(caseId, limits, added) {
  const status = make("p.drop-status", { "aria-live": "polite" });
  const bar = make("progress", { max: 1, value: 0, "aria-label": t("drop.progress"), hidden: true });
  const refused = make("details.refused", { hidden: true });
  const files = make("input.unseen", { type: "file", multiple: true, accept: "image/*,.tif,.tiff,.bmp", tabIndex: -1, "aria-hidden": "true" });
  const folder = make("input.unseen", { type: "file", multiple: true, webkitdirectory: true, tabIndex: -1, "aria-hidden": "true" });
  let running = null;
  const stop = button(t("drop.stop"), () => running?.abort(), { hidden: true });

  async function start(list) {
    if (!list.length || running) return;
    running = new AbortController();
    stop.hidden = bar.hidden = false;
    const show = (name, done) => {
      status.textContent = t(name, { done, total: list.length });
      bar.value = done / list.length;
    };
    try {
      const result = await send(caseId, list, limits, show, running.signal, added);
      status.textContent = t("drop.done", { ...result, refused: result.refused.length });
      say(status.textContent);
      refused.hidden = result.refused.length === 0;
      const reasons = result.refused.map(({ name, reason }) => make("li", {}, make("b", {}, name), ` ${reason}`));
      replace(refused, make("summary", {}, t("drop.refused")), make("ul", {}, ...reasons));
    } catch (error) {
      if (error.name !== "AbortError") banner(t("error.unknown", { message: error.message }), { kind: "error" });
    } finally {
      running = null;
      stop.hidden = bar.hidden = true;
    }
  }

  for (const input of [files, folder]) {
    input.addEventListener("change", () => {
      start([...input.files]);
      input.value = "";
    });
  }
  const zone = make(
    "section.drop",
    { "aria-label": t("drop.head") },
    make("p", {}, t("drop.text"), " ", button(t("drop.files"), () => files.click()), " ", button(t("drop.folder"), () => folder.click())),
    files, folder, bar, status, stop, refused,
  );
  const over = (on) => (event) => {
    event.preventDefault();
    zone.classList.toggle("is-over", on);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", async (event) => {
    over(false)(event);
    start(await dropped(event.dataTransfer));
  });
  return zone;
}

// All files of what was dropped, folders included.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const out = [];
  for (const entry of entries) await collect(entry, out);
  return out;
}

async function collect(entry, out) {
  if (entry.isFile) {
    out.push(await new Promise((done, failed) => entry.file(done, failed)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // at most 100 at a time
    if (!some.length) return;
    for (const inner of some) await collect(inner, out);
  }
}

async function send(caseId, list, limits, show, signal, added) {
  const result = { added: 0, present: 0, refused: [] };
  let done = 0;
  for (let start = 0; start < list.length; start += HASHED) {
    const some = list.slice(start, start + HASHED);
    show("drop.hashing", start);
    const hashed = await Promise.all(some.map(async (file) => ({ file, sha256: await digest(file) })));
    const ask = () => getMissing(caseId, hashed.map((h) => h.sha256));
    const missing = new Set((await patiently(ask, signal, () => show("drop.waiting", done))).missing);
    const fresh = hashed.filter((h) => missing.has(h.sha256));
    result.present += hashed.length - fresh.length;
    done += hashed.length - fresh.length;
    for (const batch of batches(fresh, limits)) {
      const answer = await patiently(() => sendBatch(caseId, batch), signal, () => show("drop.waiting", done));
      answer.forEach((r, i) => {
        if (r.outcome === "refused") result.refused.push({ name: batch[i].file.name, reason: r.reason });
        else result[r.outcome] += 1;
      });
      done += batch.length;
      show("drop.sending", done);
      added();
    }
  }
  return result;
}

async function sendBatch(caseId, batch) {
  const form = new FormData();
  for (const { file } of batch) form.append("files", file, file.name);
  try {
    return (await upload(caseId, form)).results;
  } catch (error) {
    if (error instanceof Refusal && error.code === "invalid" && error.detail?.length === batch.length) return error.detail;
    throw error;
  }
}

function* batches(list, limits) {
  let [batch, bytes] = [[], 0];
  for (const item of list) {
    if (batch.length && (batch.length >= Math.min(limits.files, 50) || bytes + item.file.size > MOST_BYTES)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(item);
    bytes += item.file.size;
  }
  if (batch.length) yield batch;
}

// Try until it is done: the service may be busy, or be started anew meanwhile.
async function patiently(work, signal, waiting) {
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    signal.throwIfAborted();
    try {
      return await work();
    } catch (error) {
      const later = error instanceof Offline || (error instanceof Refusal && [429, 503].includes(error.status));
      const renewed = error instanceof Refusal && error.code === "csrf";
      if (!later && !renewed) throw error;
      if (renewed) await getSession();
      waiting();
      await pause(error.retryAfter || wait);
    }
  }
}

async function digest(file) {
  const hash = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return [...new Uint8Array(hash)].map((b) => b.toString(16).padStart(2, "0")).join("");
}
