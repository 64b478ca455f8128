// The page: which jobs are shown, and how they are followed.

import { json, key, Problem, videoPath } from "./api.js";
import { clearErrors, fill, fillSecond, offer, orders, showErrors } from "./form.js";
import { callsMs, clear, computed, duration, follow, loadMedia, newColumn, newJob, policyOf, render } from "./job.js";
import { Player } from "./player.js";
import { extent } from "./plot.js";

const LIST_MS = 3000; // between two requests for the list, while a job in it has not ended
const LISTED = 8;

const $ = (id) => document.getElementById(id);
const player = new Player($("transport"), $("play"), $("seek"), $("position"));
let models = [];
let shown = []; // {job, column, loading}
let listing = 0;
let told = "";

async function begin() {
  try {
    models = (await json("v1/models")).data;
  } catch (error) {
    askForKey(error);
    return;
  }
  $("key-form").hidden = true;
  $("trouble").hidden = true;
  $("forget").hidden = !key.get();
  $("main").hidden = false;
  offer(models);
  const wanted = location.hash.slice(1).split(",").filter(Boolean).slice(0, 2);
  if (wanted.length) show(wanted);
  await list();
}

// Asks for the API key if that is what is missing; shows any other error.
function askForKey(error) {
  if (error instanceof Problem && error.status === 401) {
    $("error-key").textContent = key.get() ? "This API key is unknown to the server." : "";
    key.forget();
    $("main").hidden = true;
    $("forget").hidden = true;
    $("key-form").hidden = false;
    $("key").focus();
    return;
  }
  $("trouble").textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
  $("trouble").hidden = false;
}

async function make(event) {
  event.preventDefault();
  clearErrors();
  $("make").disabled = true;
  const made = [];
  try {
    const wanted = await orders();
    for (const { field, order } of wanted) {
      try {
        made.push((await json("v1/videos", { method: "POST", body: order })).id);
      } catch (error) {
        if (!(error instanceof Problem) || error.status === 401) throw error;
        const later = error.retryAfter ? [{ field: null, detail: `${error.message}; try again in ${error.retryAfter} s` }] : null;
        showErrors(later ?? error.fields, field);
        await Promise.all(made.map(cancel)); // a comparison needs both
        return;
      }
    }
    show(made);
  } catch (error) {
    askForKey(error);
  } finally {
    $("make").disabled = false;
    await list();
  }
}

const cancel = (id) => json(videoPath(id), { method: "DELETE" });

// Shows these jobs instead of the present ones.
function show(ids) {
  player.stop();
  for (const { job, column } of shown) {
    job.stop.abort();
    clear(column);
  }
  told = "";
  shown = ids.map((id) => ({ job: newJob(id, redrawSoon), column: newColumn(), loading: false }));
  $("jobs").prepend(...shown.map(({ column }) => column.article));
  $("jobs").classList.toggle("two", ids.length > 1);
  history.replaceState(null, "", `#${ids.join(",")}`);
  redraw();
  for (const { job } of shown) follow(job).catch(askForKey);
}

let drawing = false;

function redrawSoon() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    redraw();
  }, 30); // a timer also runs in a hidden tab
}

function redraw() {
  if (!shown.length) return;
  const jobs = shown.map(({ job }) => job);
  const scale = extent(jobs);
  for (const one of shown) {
    render(one.column, one.job, scale);
    if (one.job.video?.content && !one.loading) {
      one.loading = true;
      loadMedia(one.column, one.job, isPicture(one.job.video), playAll);
      list();
    }
  }
  const known = jobs.find((job) => job.video)?.video;
  $("title").textContent = known?.request.prompt ?? "…";
  $("facts").textContent = known ? facts(known) : "";
  $("again").hidden = !known;
  $("legend").hidden = false;
  $("cancel").hidden = !jobs.some((job) => job.video && !job.ended);
  const all = jobs.every(({ video, calls }) => video?.status === "completed" && calls.length === video.trace?.calls);
  $("verdict").hidden = jobs.length < 2 || !all;
  $("verdict").textContent = $("verdict").hidden ? "" : verdict(jobs);
  announce(jobs);
}

function facts(video) {
  const { request, model } = video;
  const defaults = models.find(({ id }) => id === model)?.defaults;
  const size = request.size ?? (defaults ? `${defaults.width}x${defaults.height}` : null);
  const frames = request.seconds ? `${request.seconds} s` : `${request.frames ?? defaults?.frames} frames`;
  const steps = `${request.steps ?? defaults?.steps} steps`;
  return [model, size, frames, steps, `seed ${request.seed}`].filter(Boolean).join(" · ");
}

function isPicture({ request, model }) {
  const defaults = models.find(({ id }) => id === model)?.defaults;
  return (request.frames ?? (request.seconds ? null : defaults?.frames)) === 1;
}

function verdict(jobs) {
  const [fast, slow] = [...jobs].sort((a, b) => callsMs(a) - callsMs(b));
  const ratio = callsMs(slow) / callsMs(fast);
  const words = (job) => `${policyOf(job)} ${computed(job)} of ${job.calls.length}`;
  const difference = `${duration(callsMs(fast))} instead of ${duration(callsMs(slow))}`;
  return (
    `${policyOf(fast)} was ${ratio.toFixed(2)} times as fast as ${policyOf(slow)}: ${difference} for the calls. ` +
    `Computed calls: ${jobs.map(words).join(", ")}. These are single runs, so times vary.`
  );
}

// Announces progress to screen readers: at every change of status, and at every quarter of the calls.
function announce(jobs) {
  const words = jobs
    .filter((job) => job.video)
    .map((job) => {
      const quarter = job.of ? Math.floor((4 * job.calls.length) / job.of) * 25 : 0;
      const how = job.video.status === "in_progress" ? `${quarter}% of the calls` : job.video.status;
      return `${policyOf(job)}: ${how}`;
    })
    .join("; ");
  if (words !== told) $("announcement").textContent = told = words;
}

// Plays the videos once all that are expected have loaded.
function playAll() {
  const coming = shown.filter(({ job }) => !job.ended || job.video.content);
  const media = coming.map(({ column }) => column.media);
  const videos = media.filter((one) => one?.tagName === "VIDEO" && one.readyState >= 2);
  if (media.every(Boolean) && videos.length === media.filter((one) => one.tagName === "VIDEO").length) player.use(videos);
}

async function list(after) {
  const turn = ++listing;
  try {
    const page = await json(`v1/videos?limit=${LISTED}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    if (turn !== listing) return;
    $("trouble").hidden = true;
    const rows = page.data.map(row);
    if (after) $("videos").append(...rows);
    else $("videos").replaceChildren(...rows);
    $("none").hidden = $("videos").childElementCount > 0;
    $("older").hidden = !page.has_more;
    $("older").onclick = () => list(page.last_id);
    const active = page.data.some((video) => ["queued", "in_progress"].includes(video.status));
    if (active && !after) setTimeout(() => turn === listing && list(), LIST_MS);
  } catch (error) {
    askForKey(error);
  }
}

function row(video) {
  const item = $("video").content.firstElementChild.cloneNode(true);
  const trace = video.trace && video.status === "completed" ? `${video.trace.computed} of ${video.trace.calls} computed` : null;
  const time = trace ? duration(video.trace.wall_ms) : null;
  const date = new Date(1000 * video.created_at);
  const dateStyle = date.toDateString() === new Date().toDateString() ? undefined : "short";
  const when = date.toLocaleString([], { dateStyle, timeStyle: "short" });
  const status = video.status === "completed" ? (video.content ? null : "deleted") : video.status.replace("_", " ");
  item.querySelector(".prompt").textContent = video.request.prompt;
  item.querySelector(".about").textContent = [status, video.request.policy, trace, time, when].filter(Boolean).join(" · ");
  item.querySelector(".show").onclick = () => show([video.id]);
  const beside = item.querySelector(".beside");
  beside.setAttribute("aria-label", `Compare ${video.request.prompt}, ${video.request.policy}, with the first video`);
  beside.onclick = () => show([...shown.slice(0, 1).map(({ job }) => job.id).filter((id) => id !== video.id), video.id]);
  return item;
}

$("order").addEventListener("submit", make);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("order").requestSubmit();
});
$("cancel").addEventListener("click", async () => {
  const running = shown.map(({ job }) => job).filter((job) => !job.ended);
  await Promise.all(running.map((job) => cancel(job.id))).catch(askForKey);
  await list();
});
$("again").addEventListener("click", () => {
  const [first, second] = shown.map(({ job }) => job.video);
  if (first) fill(first);
  fillSecond(second);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  begin();
});
$("forget").addEventListener("click", () => {
  key.forget();
  location.hash = "";
  location.reload();
});
addEventListener("resize", redrawSoon);

begin();
