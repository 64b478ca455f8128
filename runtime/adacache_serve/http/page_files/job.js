// A job on the page: it is followed until it has ended, and shown as a column.

import { events, json, key, Problem, request, videoPath } from "./api.js";
import { draw } from "./plot.js";

const ENDED = ["completed", "failed", "cancelled"];
const POLL_MS = 1000; // for progress without events, while frames are decoded
const AGAIN_MS = 1000; // after a connection broke

const WORDS = {
  queued: "queued",
  in_progress: "in progress",
  completed: "completed",
  failed: "failed",
  cancelled: "cancelled",
};

// The state of a job; `changed` is called whenever it changes.
export function newJob(id, changed) {
  return {
    id,
    changed,
    video: null,
    calls: [],
    of: 0,
    seen: null, // id of the last event
    trouble: null,
    stop: new AbortController(),
    get ended() {
      return ENDED.includes(this.video?.status);
    },
  };
}

// Follows a job until it has ended, or until `stop` is aborted.
export async function follow(job) {
  try {
    update(job, await json(videoPath(job.id), { signal: job.stop.signal }));
    const polling = poll(job);
    while (!(await listen(job))) await pause(AGAIN_MS);
    await polling;
  } catch (error) {
    if (job.stop.signal.aborted) return;
    job.trouble = error.message;
    job.changed(job);
    if (error instanceof Problem && error.status === 401) throw error;
  }
}

async function listen(job) {
  try {
    for await (const { kind, id, data } of events(job.id, job.seen, job.stop.signal)) {
      job.trouble = null;
      job.seen = id ?? job.seen;
      if (kind === "call") {
        job.calls.length = Math.min(job.calls.length, data.call - 1); // a new attempt makes these calls again
        job.calls.push(data);
        job.changed(job);
      } else if (kind === "status") {
        update(job, data);
      }
    }
  } catch (error) {
    if (job.stop.signal.aborted || error instanceof Problem) throw error;
    job.trouble = "the server cannot be reached; trying again";
    job.changed(job);
  }
  return job.ended;
}

async function poll(job) {
  while (!job.ended) {
    await pause(POLL_MS);
    if (job.stop.signal.aborted) return;
    try {
      const video = await json(videoPath(job.id), { signal: job.stop.signal });
      if (!job.ended && !ENDED.includes(video.status)) update(job, video); // the last status comes with the last event
    } catch (error) {
      if (job.stop.signal.aborted) return;
    }
  }
}

function update(job, video) {
  job.video = video;
  job.of = video.trace?.of || job.of || video.request.steps || 0;
  job.changed(job);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const policyOf = (job) => job.video?.request.policy ?? "…";
export const computed = (job) => job.calls.filter((call) => call.computed).length;
export const callsMs = (job) => job.calls.reduce((sum, call) => sum + call.wall_ms, 0);

export function duration(milliseconds) {
  if (milliseconds < 1000) return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

// Makes a column from the template.
export function newColumn() {
  const article = document.getElementById("job").content.firstElementChild.cloneNode(true);
  const at = (selector) => article.querySelector(selector);
  return { article, at, words: at(".waiting"), media: null, blob: null }; // words are shown until there are media
}

// Shows the state of a job; all plots have the same `scale`.
export function render(column, job, scale) {
  const { at } = column;
  const status = job.video?.status;
  at("h3").textContent = policyOf(job);
  at(".badge").textContent = WORDS[status] ?? "";
  at(".badge").dataset.status = status ?? "";
  column.words.textContent = waiting(job);
  const progress = at("progress");
  progress.value = status === "completed" ? 100 : Math.max(job.video?.progress ?? 0, share(job));
  progress.setAttribute("aria-label", `Progress of ${policyOf(job)}`);
  progress.classList.toggle("over", job.ended);
  at(".failure").textContent = job.trouble ?? job.video?.error?.message ?? "";
  if (job.calls.length) {
    const all = job.of ? ` of ${Math.max(job.of, job.calls.length)}` : "";
    at(".computed-calls").textContent = `${computed(job)}${all}`;
    at(".cached-calls").textContent = String(job.calls.length - computed(job));
    at(".time").textContent = duration(callsMs(job));
  }
  draw(at(".plot"), job, scale);
}

const share = (job) => (job.of ? (90 * job.calls.length) / job.of : 0);

function waiting(job) {
  const status = job.video?.status;
  if (status === "completed") return job.video.content ? "" : "the video was deleted";
  if (job.ended) return WORDS[status];
  if (status === "queued") return "waiting in the queue";
  if (!job.calls.length) return "starting";
  if (job.of && job.calls.length >= job.of) return "decoding";
  return `call ${job.calls.length + 1}${job.of ? ` of ${job.of}` : ""}`;
}

// Loads the video or the image into its column.
export async function loadMedia(column, job, single, loaded) {
  let source = `${videoPath(job.id)}/content`;
  if (key.get()) {
    // a video element cannot send the key
    try {
      const blob = await (await request(source, { signal: job.stop.signal })).blob();
      single = blob.type.startsWith("image/");
      source = column.blob = URL.createObjectURL(blob);
    } catch (error) {
      if (!job.stop.signal.aborted) column.at(".failure").textContent = `the video could not be loaded: ${error.message}`;
      return;
    }
  }
  const link = column.at(".download");
  link.href = source;
  link.download = `${job.id}.${single ? "png" : "mp4"}`;
  link.hidden = false;
  place(column, job, single, source, loaded);
}

function place(column, job, single, source, loaded) {
  const media = document.createElement(single ? "img" : "video");
  const words = `${job.video.request.prompt}, with ${policyOf(job)}`;
  if (single) {
    media.alt = words;
  } else {
    media.setAttribute("aria-label", words);
    media.muted = media.playsInline = true;
    media.preload = "auto";
  }
  const ready = () => {
    const width = media.videoWidth || media.naturalWidth;
    media.classList.toggle("tiny", width < 256); // tiny videos are enlarged without smoothing
    loaded(column);
  };
  media.addEventListener(single ? "load" : "loadeddata", ready);
  media.addEventListener("error", () => {
    if (!single) place(column, job, true, source, loaded); // a single frame is an image
    else column.at(".failure").textContent = "this browser cannot play the video; download it instead";
  });
  media.src = source;
  column.media = media;
  column.at(".screen").replaceChildren(media);
}

export function clear(column) {
  if (column.blob) URL.revokeObjectURL(column.blob);
  column.article.remove();
}
