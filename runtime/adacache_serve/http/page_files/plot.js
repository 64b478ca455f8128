// The schedule of a generation as SVG: computed and cached calls, their times, and the measured distances.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 40;
const RIGHT = 6;
const STRIP = { top: 2, height: 12 };
const TIME = { top: 40, height: 92, lines: 2 };
const DISTANCE = { top: 160, height: 52, lines: 1 };
const AXIS = DISTANCE.top + DISTANCE.height;
const HEIGHT = AXIS + 34;
const LEAST = 2; // height of a bar in pixels, so that the fastest call is visible

// The common scale of plots that are compared: most calls, milliseconds and distance.
export function extent(jobs) {
  const calls = jobs.flatMap((job) => job.calls);
  return {
    calls: Math.max(1, ...jobs.map((job) => Math.max(job.of, job.calls.length))),
    time: Math.max(1, ...calls.map((call) => call.wall_ms)),
    distance: Math.max(1e-3, ...calls.map((call) => call.distance ?? 0)),
  };
}

// Draws the plot of a job.
export function draw(svg, job, { calls: count, time, distance }) {
  const width = Math.max(240, svg.parentElement.clientWidth || 0);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("aria-label", spoken(job));
  const step = (width - LEFT - RIGHT) / count;
  const bar = Math.max(0.5, step - (step > 6 ? 2 : step > 3 ? 1 : 0));
  const x = (call) => LEFT + (call - 1) * step + (step - bar) / 2;
  const parts = [];
  const add = (name, attributes, text) => parts.push(element(name, attributes, text));

  for (let call = job.calls.length + 1; call <= Math.max(job.of, job.calls.length); call++) {
    add("rect", { class: "coming", x: x(call), y: STRIP.top, width: bar, height: STRIP.height });
  }
  const [unit, divisor] = time >= 1e4 ? ["s", 1000] : ["ms", 1];
  panel(add, TIME, width, time / divisor, `time of each call, ${unit}`);
  const none = job.ended && !job.calls.some((call) => call.distance != null);
  panel(add, DISTANCE, width, distance, `distance of the residuals${none ? ": not measured by this policy" : ", where measured"}`);
  for (const call of job.calls) {
    const kind = call.computed ? "computed" : "cached";
    const paint = call.computed ? {} : { fill: "url(#hatch)" };
    const height = Math.max(LEAST, (TIME.height * call.wall_ms) / time);
    const at = { x: x(call.call), width: bar };
    add("rect", { class: `cell ${kind}`, ...paint, ...at, y: STRIP.top, height: STRIP.height });
    const y = TIME.top + TIME.height - height;
    add("rect", { class: `call ${kind}`, ...paint, ...at, y, height, "data-call": call.call }, told(call));
    if (call.distance != null) {
      const middle = x(call.call) + bar / 2;
      const top = AXIS - (DISTANCE.height * call.distance) / distance;
      add("line", { class: "stem", x1: middle, x2: middle, y1: AXIS, y2: top });
      add("circle", { class: "dot", cx: middle, cy: top, r: Math.min(3, Math.max(1.2, bar / 2)) }, told(call));
    }
  }
  for (const call of ticks(count)) {
    add("text", { class: "tick", x: x(call) + bar / 2, y: AXIS + 14, "text-anchor": "middle" }, String(call));
  }
  add("text", { class: "name", x: LEFT + (width - LEFT - RIGHT) / 2, y: AXIS + 30, "text-anchor": "middle" }, "call");
  svg.replaceChildren(...parts);
}

function panel(add, { top, height, lines }, width, most, name) {
  add("text", { class: "name", x: LEFT, y: top - 8 }, name);
  const apart = rounded(most / lines);
  for (let value = 0; value <= most * 1.0001; value += apart) {
    const y = top + height - (height * value) / most;
    add("line", { class: value ? "grid" : "base", x1: LEFT, x2: width - RIGHT, y1: y, y2: y });
    add("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, String(Number(value.toPrecision(3))));
  }
}

// The largest number of the form 1, 2 or 5 times a power of ten that is at most `number`.
function rounded(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [5, 2, 1].map((factor) => factor * power).find((value) => value <= number * 1.0001) ?? power;
}

function ticks(count) {
  const apart = [1, 2, 5, 10, 20, 50, 100, 200].find((step) => count / step <= 9) ?? 500;
  const found = apart > 1 ? [1] : [];
  for (let call = apart; call <= count; call += apart) found.push(call);
  return found;
}

function told(call) {
  const distance = call.distance != null ? `, distance ${call.distance.toPrecision(3)}` : "";
  return `call ${call.call}: ${call.computed ? "computed" : "cached"}, ${call.wall_ms.toPrecision(3)} ms${distance}`;
}

function spoken(job) {
  const computed = job.calls.filter((call) => call.computed).map((call) => call.call);
  return `Schedule: ${job.calls.length} of ${job.of || "?"} calls made; computed calls: ${computed.join(", ") || "none"}`;
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text === undefined) return made;
  if (name === "text" || name === "title") made.textContent = text;
  else made.append(element("title", {}, text)); // shown as a tooltip
  return made;
}
