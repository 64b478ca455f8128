// The form: what a model offers, the orders, and their errors.

const DRAWN = 2 ** 32;
const NUMBERS = ["steps", "guidance", "guidance_2", "seed"];
const PLACES = { seconds: "duration", frames: "duration", aspect: "size", image_at: "image" };

const form = document.getElementById("order");
const inputs = form.elements;
const $ = (id) => document.getElementById(id);

// Fills the list of models, and selects the first.
export function offer(models) {
  inputs.model.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  const choose = () => offerModel(models.find((model) => model.id === inputs.model.value));
  inputs.model.onchange = choose;
  inputs.policy_b.onchange = tellHowMany;
  choose();
}

function offerModel(model) {
  const names = model.policies.filter((policy) => !policy.why_not).map((policy) => policy.name);
  const options = () =>
    model.policies.map((policy) => {
      const option = new Option(policy.name, policy.name);
      option.title = policy.why_not ?? policy.note;
      option.disabled = policy.why_not != null;
      return option;
    });
  const before = [inputs.policy.value, inputs.policy_b.value];
  inputs.policy.replaceChildren(...options());
  inputs.policy_b.replaceChildren(new Option("no other policy", ""), ...options());
  inputs.policy.value = [before[0], "adacache-fast", "never"].find((name) => names.includes(name));
  inputs.policy_b.value = names.includes(before[1]) ? before[1] : "";
  const { width, height, frames, fps, steps, guidance, guidance_2 } = model.defaults;
  inputs.size.placeholder = `${width}x${height}`;
  inputs.duration.placeholder = inputs.unit.value === "frames" ? String(frames) : String(Number((frames / fps).toFixed(2)));
  inputs.unit.onchange = () => offerModel(model);
  $("known-sizes").replaceChildren(...sizeOptions(model));
  $("known-durations").replaceChildren(...durationOptions(model, inputs.unit.value));
  inputs.steps.placeholder = String(steps);
  inputs.guidance.placeholder = String(guidance);
  inputs.guidance_2.placeholder = String(guidance_2 ?? "");
  $("guidance-2-field").hidden = guidance_2 == null;
  offerSamplers(model.samplers);
  $("negative-field").hidden = !model.negative_prompt;
  $("image-field").hidden = !model.image;
  $("image-label").textContent = model.image_required ? "The image to start from (required)" : "Start from an image";
  if (model.image_required) $("more").open = true;
  tellHowMany();
}

// The model's samplers; an order leaves out the first, which is the default.
function offerSamplers(samplers, chosen = inputs.sampler.value) {
  inputs.sampler.replaceChildren(...samplers.map((name, place) => new Option(name, place ? name : "")));
  inputs.sampler.value = samplers.indexOf(chosen) > 0 ? chosen : "";
}

// Each named size by its name, and each of its other aspects in pixels.
function sizeOptions(model) {
  return model.sizes.flatMap(({ name, aspect, aspects }) => [
    new Option(`${aspects[aspect]}, ${aspect}`, name),
    ...Object.entries(aspects)
      .filter(([other]) => other !== aspect)
      .map(([other, pixels]) => new Option(`${name}, ${other}`, pixels)),
  ]);
}

// The durations that the model makes: in frames, or those of them that are seconds.
function durationOptions(model, unit) {
  const known = Object.entries(model.durations);
  if (unit === "frames") return known.map(([name, frames]) => new Option(name, frames));
  const seconds = known.filter(([name]) => /^[0-9.]+s$/.test(name));
  return seconds.map(([name, frames]) => new Option(`${frames} frames`, name.slice(0, -1)));
}

function tellHowMany() {
  $("make").textContent = inputs.policy_b.value ? "Make both videos" : "Make the video";
}

// The orders, one for each policy and otherwise the same, seed included; each with the name of its policy's field.
export async function orders() {
  const order = { prompt: inputs.prompt.value };
  if (inputs.model.value) order.model = inputs.model.value;
  if (!$("negative-field").hidden && inputs.negative_prompt.value) order.negative_prompt = inputs.negative_prompt.value;
  if (inputs.size.value.trim()) order.size = inputs.size.value.trim();
  if (inputs.duration.value.trim()) order[inputs.unit.value] = number(inputs.duration.value);
  for (const name of NUMBERS) {
    if (!inputs[name].closest("[hidden]") && inputs[name].value.trim()) order[name] = number(inputs[name].value);
  }
  if (inputs.sampler.value) order.sampler = inputs.sampler.value;
  if (!$("image-field").hidden && inputs.image.files[0]) order.image = await dataUrl(inputs.image.files[0]);
  order.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % DRAWN;
  const first = { field: "policy", order: { ...order, policy: inputs.policy.value + wrappers(inputs.wrappers) } };
  if (!inputs.policy_b.value) return [first];
  return [first, { field: "policy_b", order: { ...order, policy: inputs.policy_b.value + wrappers(inputs.wrappers_b) } }];
}

const wrappers = (input) => input.value.trim().replace(/^(?=[^+])/, "+");

// A text that is not a number is sent as it is, so that the server explains the error.
const number = (text) => (Number.isFinite(Number(text)) ? Number(text) : text.trim());

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// Fills the form with the request of a video.
export function fill(video) {
  const { request } = video;
  inputs.model.value = video.model;
  inputs.model.onchange();
  inputs.prompt.value = request.prompt;
  inputs.negative_prompt.value = request.negative_prompt ?? "";
  inputs.size.value = request.size ?? "";
  inputs.unit.value = request.frames != null ? "frames" : "seconds";
  inputs.duration.value = request.frames ?? request.seconds ?? "";
  for (const name of NUMBERS) inputs[name].value = request[name] ?? "";
  offerSamplers([...inputs.sampler.options].map((option) => option.text), request.sampler ?? "");
  fillPolicy(inputs.policy, inputs.wrappers, request.policy);
  inputs.unit.onchange();
  $("more").open = true;
  inputs.prompt.focus();
}

export function fillSecond(video) {
  fillPolicy(inputs.policy_b, inputs.wrappers_b, video?.request.policy ?? "");
  tellHowMany();
}

function fillPolicy(select, input, policy) {
  const [name, ...others] = policy.split("+");
  select.value = name;
  input.value = others.map((wrapper) => `+${wrapper}`).join("");
}

// Removes all errors.
export function clearErrors() {
  for (const place of form.querySelectorAll(".error")) place.textContent = "";
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

// Shows each error at the field that it names, and others below the form. `policyField` is the policy's field.
export function showErrors(fields, policyField = "policy") {
  let first = null;
  for (const { field, detail } of fields) {
    const name = field === "policy" ? policyField : (PLACES[field] ?? field);
    const input = name && inputs[name];
    const place = $(`error-${name}`);
    if (!input || !place || input.closest("[hidden]")) {
      $("error-form").textContent = field ? `${field}: ${detail}` : detail;
      continue;
    }
    place.textContent = detail;
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", place.id);
    input.closest("details")?.setAttribute("open", "");
    first ??= input;
  }
  first?.focus();
}
