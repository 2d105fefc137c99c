// Requests to the service. Every refusal is a Refusal with the service's code, message and detail.

let csrf = null;

export class Refusal extends Error {
  constructor(status, body, retryAfter) {
    super(body.message);
    Object.assign(this, { status, code: body.code, detail: body.detail, retryAfter });
  }
}

// The service could not be reached, or stopped in the middle.
export class Offline extends Error {}

async function send(method, path, body, read) {
  const headers = {};
  if (csrf !== null) headers["X-CSRF-Token"] = csrf;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  let text;
  try {
    answer = await fetch(path, { method, headers, body, credentials: "same-origin", cache: "no-store" });
    if (answer.ok) return await read(answer);
    text = await answer.text();
  } catch (error) {
    throw new Offline(error.message);
  }
  const parsed = text ? parse(text) : null;
  const problem = parsed ?? { code: "unreadable", message: `${answer.status} ${answer.statusText}`, detail: null };
  throw new Refusal(answer.status, problem, Number(answer.headers.get("Retry-After") ?? 0));
}

export const ask = (method, path, body) => send(method, path, body, async (answer) => {
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
});

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const secret = (session) => {
  csrf = session.csrf;
  return session;
};

export const getSession = async () => secret(await ask("GET", "/v1/session"));
export const enter = async (token) => secret(await ask("POST", "/v1/session", { token }));
export const leave = () => ask("DELETE", "/v1/session");
export const getModels = () => ask("GET", "/v1/models");

export const getCases = (offset) => ask("GET", `/v1/cases?limit=100&offset=${offset}`);
export const makeCase = (name, model) => ask("POST", "/v1/cases", { name, model });
export const getCase = (id) => ask("GET", `/v1/cases/${id}`);
export const deleteCase = (id) => ask("DELETE", `/v1/cases/${id}`);
export const sign = (id, version, comment) => ask("POST", `/v1/cases/${id}/sign`, { version, comment });
export const reopen = (id, reason) => ask("POST", `/v1/cases/${id}/reopen`, { reason });
export const getDifferential = (id, adjusted = true) => ask("GET", `/v1/cases/${id}/differential?adjusted=${adjusted}`);
export const getHistory = (id, cell) => ask("GET", `/v1/cases/${id}/history?limit=1000&cell=${cell}`);
export const exportUrl = (id, kind, names) => `/v1/cases/${id}/export/${kind}?names=${names}`;

export const getMissing = (id, sha256) => ask("POST", `/v1/cases/${id}/cells/missing`, { sha256 });
export const upload = (id, form) => ask("POST", `/v1/cases/${id}/cells`, form);
export const changeCell = (id, number, change) => ask("PATCH", `/v1/cases/${id}/cells/${number}`, change);
export const getSimilar = (id, number) => ask("GET", `/v1/cases/${id}/cells/${number}/similar`);
export const undo = (id) => ask("POST", `/v1/cases/${id}/undo`);
export const cellUrl = (id, number, what) => `/v1/cases/${id}/cells/${number}/${what}`;

// A picture as a blob: unlike an <img>, it tells why there is none.
export const getPicture = (path) => send("GET", path, undefined, (answer) => answer.blob());

// All cells that changed since a version, and the version up to which they are complete.
export async function getCells(id, since) {
  const cells = [];
  let version = null;
  for (;;) {
    const page = await ask("GET", `/v1/cases/${id}/cells?sort=number&limit=1000&offset=${cells.length}&changed_since=${since}`);
    version ??= page.case_version;
    cells.push(...page.cells);
    if (page.cells.length < 1000) return { cells, version };
  }
}
