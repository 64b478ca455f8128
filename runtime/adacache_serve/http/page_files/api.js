// The server's API: requests with the key, problems, and server-sent events.

const KEY = "adacache-serve-key";

export class Problem extends Error {
  constructor(status, body, retryAfter) {
    super(body.detail || `the server answered ${status}`);
    this.status = status;
    this.retryAfter = retryAfter;
    // the errors by field; null = no particular field
    this.fields = body.errors?.length ? body.errors : [{ field: body.field ?? null, detail: this.message }];
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

// Returns a successful Response; throws a Problem for any other, and a TypeError if the server cannot be reached.
export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers: sent, signal, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(response.status, problem, response.headers.get("Retry-After"));
}

export const json = async (path, options) => (await request(path, options)).json();

export const videoPath = (id) => `v1/videos/${encodeURIComponent(id)}`;

// Yields the events of a job as {kind, id, data}, after the event with the id `seen`, until the stream ends.
// EventSource would do this, but cannot send the key.
export async function* events(id, seen, signal) {
  const headers = seen ? { "Last-Event-ID": seen } : {};
  const response = await request(`${videoPath(id)}/events`, { headers, signal });
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) yield event;
    }
  }
}

function parsed(block) {
  let [kind, id] = ["message", null];
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "event") kind = value;
    if (name === "id") id = value;
    if (name === "data") data.push(value);
  }
  return data.length ? { kind, id, data: JSON.parse(data.join("\n")) } : null; // comments only keep the connection open
}
