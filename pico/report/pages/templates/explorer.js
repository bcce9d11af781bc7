// The explorer: choose series by their keys, draw them over log-step. No library, nothing loaded; names from the data
// reach the page only as text nodes and values, never as markup.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const KEYS = ["metric", "settings", "component", "module", "data_type", "split", "layer", "head"];
const SIGNS = ["circle", "square", "triangle", "diamond", "down", "plus", "cross", "star"];
const BOX = { width: 1100, height: 470, left: 76, right: 20, top: 14, bottom: 44 };
const MANY = 160;  // curves; more are no picture
const $ = (id) => document.getElementById(id);
const svg = (name, attributes = {}, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
};

// ---- the data: columns of indices, and one array of float32 a model
for (const model of DATA.models) {
  const bytes = Uint8Array.from(atob(model.values), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  model.values = Float32Array.from({ length: bytes.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
  model.count = model.series.metric.length;
  model.nulls = new Map(model.nulls);
  model.why = new Map(model.status.map(([series, step, status]) => [series * model.steps.length + step, status]));
}
const LAYERS = DATA.names.layer.filter((layer) => layer !== null).length
  ? Math.max(...DATA.names.layer.filter((layer) => layer !== null)) + 1 : 1;

function label(key, value) {
  if (value === null) return { head: "all heads together", split: "none (weights)", module: "whole circuit", layer: "whole model" }[key] || "none";
  if (key === "settings") return value === "{}" ? "default" : value;
  if (key === "layer" || key === "head") return `${key} ${value}`;
  return key === "module" ? value : String(value).replaceAll("_", " ");
}

// ---- the choice: one value a key, or "every" (layers, heads), or "mean" (over heads)
const chosen = Object.fromEntries(KEYS.map((key) => [key, 0]));
const models = new Set(DATA.models.map((_, index) => index));
let cursor = null;
let curves = [];

/** Series of a model that fit all choices but those of the keys in `free`. */
function matching(model, free = []) {
  const found = [];
  const fixed = KEYS.filter((key) => !free.includes(key) && typeof chosen[key] === "number");
  next: for (let at = 0; at < model.count; at++) {
    for (const key of fixed) if (model.series[key][at] !== chosen[key]) continue next;
    if (!free.includes("head") && (chosen.head === "every" || chosen.head === "mean") && DATA.names.head[model.series.head[at]] === null) continue;
    found.push(at);
  }
  return found;
}

/** Fills the menus from the first key to the last: each offers what the keys before it leave. */
function offer() {
  KEYS.forEach((key, place) => {
    const later = KEYS.slice(place);
    const present = new Set();
    for (const index of models) for (const at of matching(DATA.models[index], later)) present.add(DATA.models[index].series[key][at]);
    const options = [...present].sort((one, other) => order(key, one, other)).map((code) => [code, label(key, DATA.names[key][code])]);
    const many = options.filter(([code]) => DATA.names[key][code] !== null).length > 1;
    if (key === "layer" && options.length > 1) options.unshift(["every", "every layer"]);
    if (key === "head" && many) options.unshift(["mean", "mean over heads"], ["every", "every head"]);
    const wanted = options.some(([code]) => code === chosen[key]) ? chosen[key] : options.length ? options[0][0] : 0;
    chosen[key] = wanted;
    const menu = $(key);
    menu.replaceChildren(...options.map(([code, text]) => {
      const option = document.createElement("option");
      option.value = code;
      option.textContent = text;
      option.selected = code === wanted;
      return option;
    }));
    menu.disabled = options.length < 2;
  });
}

function order(key, one, other) {
  const [a, b] = [DATA.names[key][one], DATA.names[key][other]];
  if (a === null || b === null) return (a !== null) - (b !== null);
  return typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
}

// ---- from the choice to curves
function gather() {
  curves = [];
  for (const index of [...models].sort((a, b) => a - b)) {
    const model = DATA.models[index];
    const groups = new Map();
    for (const at of matching(model)) {
      const group = chosen.head === "mean" ? `${model.series.layer[at]}` : `${at}`;
      groups.set(group, [...(groups.get(group) || []), at]);
    }
    for (const members of groups.values()) {
      const first = members[0];
      const layer = DATA.names.layer[model.series.layer[first]];
      const head = DATA.names.head[model.series.head[first]];
      const values = model.steps.map((_, step) => {
        const known = members.map((at) => model.values[at * model.steps.length + step]).filter((value) => !Number.isNaN(value));
        return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
      });
      const why = model.steps.map((_, step) => [...new Set(members.map((at) => model.why.get(at * model.steps.length + step)).filter(Boolean))].join(", "));
      const parts = [model.name];
      if (layer !== null) parts.push(`layer ${layer}`);
      if (chosen.head === "mean") parts.push(members.length > 1 ? `mean of ${members.length} heads` : "one head");
      else if (head !== null) parts.push(`head ${head}`);
      curves.push({ index, layer, head, name: parts.join(" · "), steps: model.steps, values, why, null: model.nulls.get(first) });
    }
  }
  curves.sort((one, other) => one.index - other.index || one.layer - other.layer || one.head - other.head);
}

/** Colour by layer where several layers of one model are drawn; else by model. */
function byLayer() {
  return new Set(curves.map((curve) => curve.index)).size === 1 && new Set(curves.map((curve) => curve.layer)).size > 1;
}
const colour = (curve) => byLayer() ? `var(--layer-${Math.min(curve.layer, LAYERS - 1)})` : `var(--model-${curve.index})`;

// ---- the picture
const place = (step) => Math.asinh(step);  // linear near 0, logarithmic after: room for step 0
const short = (value) => {
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (size >= limit) return `${+(value / limit).toPrecision(3)}${unit}`;
  return `${+value.toPrecision(3)}`;
};
const exact = (value) => Number.isNaN(value) ? "" : `${+value.toPrecision(6)}`;

function ticks(low, high, logarithmic) {
  if (logarithmic) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of Math.log10(high / low) > 2.5 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-9) || (high < 0 && at * step <= high); at++) found.push(at * step);
  return found;
}

function sign(kind, x, y, size, fill) {
  const s = size;
  const shapes = {
    square: [[-s, -s], [s, -s], [s, s], [-s, s]], triangle: [[0, -s * 1.2], [s * 1.1, s], [-s * 1.1, s]],
    diamond: [[0, -s * 1.3], [s * 1.3, 0], [0, s * 1.3], [-s * 1.3, 0]], down: [[0, s * 1.2], [s * 1.1, -s], [-s * 1.1, -s]],
    plus: [[-s / 2, -s], [s / 2, -s], [s / 2, -s / 2], [s, -s / 2], [s, s / 2], [s / 2, s / 2], [s / 2, s], [-s / 2, s], [-s / 2, s / 2], [-s, s / 2], [-s, -s / 2], [-s / 2, -s / 2]],
    cross: [[-s, -s * 0.5], [-s * 0.5, -s], [0, -s * 0.5], [s * 0.5, -s], [s, -s * 0.5], [s * 0.5, 0], [s, s * 0.5], [s * 0.5, s], [0, s * 0.5], [-s * 0.5, s], [-s, s * 0.5], [-s * 0.5, 0]],
    star: Array.from({ length: 10 }, (_, at) => { const r = at % 2 ? s * 0.55 : s * 1.3, a = Math.PI * at / 5; return [r * Math.sin(a), -r * Math.cos(a)]; }),
  };
  if (kind === "circle") return svg("circle", { cx: x, cy: y, r: s, style: `fill: ${fill}` });
  return svg("polygon", { points: shapes[kind].map(([dx, dy]) => `${(x + dx).toFixed(2)},${(y + dy).toFixed(2)}`).join(" "), style: `fill: ${fill}` });
}

function draw() {
  const plot = $("plot");
  plot.replaceChildren();
  $("legend").replaceChildren();
  const shown = curves.slice(0, MANY);
  const logarithmic = $("scale").value === "log";
  const nulls = [...new Set(shown.map((curve) => curve.null).filter((level) => level !== undefined))];
  const usable = (value) => Number.isFinite(value) && (!logarithmic || value > 0);
  const values = shown.flatMap((curve) => curve.values).concat(nulls).filter(usable);
  const metric = DATA.names.metric[chosen.metric];
  const definition = DATA.definitions[metric];
  say(`${label("metric", metric)}${definition ? `: ${definition}` : ""}. ` + (curves.length > MANY ? `The first ${MANY} of ${curves.length} curves.` : `${curves.length} curve${curves.length === 1 ? "" : "s"}.`) + (values.length ? "" : " No value can be drawn on this axis."));
  if (!values.length) return table();
  let [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (logarithmic) { if (low === high) { low /= 2; high *= 2; } const room = (high / low) ** 0.04; low /= room; high *= room; }
  else { const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5; low -= room; high += room; }
  const last = Math.max(1, ...shown.flatMap((curve) => curve.steps));
  const x = (step) => BOX.left + 8 + (BOX.width - BOX.left - BOX.right - 16) * place(step) / place(last);
  const scale = (value) => logarithmic ? Math.log(value) : value;
  const y = (value) => BOX.height - BOX.bottom - (BOX.height - BOX.top - BOX.bottom) * (scale(value) - scale(low)) / (scale(high) - scale(low));
  for (const value of ticks(low, high, logarithmic)) {
    plot.append(svg("line", { class: "rule", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(value), y2: y(value) }));
    plot.append(svg("text", { class: "tick", x: BOX.left - 8, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (let step = 1; step <= last; step *= 10) {
    plot.append(svg("line", { class: "axis", x1: x(step), x2: x(step), y1: BOX.height - BOX.bottom, y2: BOX.height - BOX.bottom + 4 }));
    plot.append(svg("text", { class: "tick", x: x(step), y: BOX.height - BOX.bottom + 18, "text-anchor": "middle" }, short(step)));
  }
  plot.append(svg("text", { class: "tick", x: x(0), y: BOX.height - BOX.bottom + 18, "text-anchor": "middle" }, "0"));
  plot.append(svg("path", { class: "axis", d: `M${BOX.left},${BOX.top}V${BOX.height - BOX.bottom}H${BOX.width - BOX.right}` }));
  plot.append(svg("text", { x: (BOX.left + BOX.width - BOX.right) / 2, y: BOX.height - 6, "text-anchor": "middle" }, "step"));
  plot.append(svg("text", { transform: `translate(14 ${BOX.height / 2 - 10}) rotate(-90)`, "text-anchor": "middle" }, label("metric", metric)));
  for (const level of nulls.filter(usable)) {
    plot.append(svg("line", { class: "null", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(level), y2: y(level) }));
  }
  const heads = [...new Set(shown.map((curve) => curve.head))].length > 1;
  for (const curve of shown) {
    let path = "", pen = false;
    curve.steps.forEach((step, at) => {
      const value = curve.values[at];
      if (!usable(value)) { pen = false; return; }
      path += `${pen ? "L" : "M"}${x(step).toFixed(1)},${y(value).toFixed(1)}`;
      pen = true;
    });
    const group = svg("g");
    group.append(svg("title", {}, curve.name));
    group.append(svg("path", { d: path, style: `fill: none; stroke: ${colour(curve)}; stroke-width: ${heads ? 1.2 : 1.9}; stroke-linejoin: round; stroke-opacity: ${shown.length > 40 ? 0.65 : 1}` }));
    if (shown.length <= 40) curve.steps.forEach((step, at) => {
      if (usable(curve.values[at])) group.append(sign(SIGNS[curve.index % SIGNS.length], x(step), y(curve.values[at]), 3, colour(curve)));
    });
    plot.append(group);
  }
  if (cursor !== null) plot.append(svg("line", { class: "cursor", x1: x(cursor), x2: x(cursor), y1: BOX.top, y2: BOX.height - BOX.bottom }));
  plot.step = (pixel) => allSteps().reduce((best, step) => Math.abs(x(step) - pixel) < Math.abs(x(best) - pixel) ? step : best, 0);
  legend(shown, nulls);
  table();
}

function legend(shown, nulls) {
  const entries = new Map();
  for (const curve of shown) {
    const key = byLayer() ? `layer ${curve.layer}` : DATA.models[curve.index].name;
    if (!entries.has(key)) entries.set(key, curve);
  }
  const items = [...entries].map(([text, curve]) => {
    const picture = svg("svg", { width: 22, height: 12, "aria-hidden": "true" });
    picture.append(svg("line", { x1: 0, x2: 22, y1: 6, y2: 6, style: `stroke: ${colour(curve)}; stroke-width: 2` }), sign(SIGNS[curve.index % SIGNS.length], 11, 6, 4, colour(curve)));
    return item(picture, text);
  });
  if (nulls.length) {
    const picture = svg("svg", { width: 22, height: 12, "aria-hidden": "true" });
    picture.append(svg("line", { x1: 0, x2: 22, y1: 6, y2: 6, style: "stroke: var(--muted); stroke-width: 1.3; stroke-dasharray: 6 4" }));
    items.push(item(picture, `independent data: ${nulls.map(short).join(", ")}`));
  }
  $("legend").replaceChildren(...items);
}

function item(picture, text) {
  const line = document.createElement("li");
  line.append(picture, text);
  return line;
}

const allSteps = () => [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
const say = (text) => { $("says").textContent = text; };

/** The values at the cursor (the last step where there is none), as a table: what hovering shows, for everyone. */
function table() {
  const steps = allSteps();
  const step = cursor ?? steps.at(-1);
  $("at").caption.textContent = step === undefined ? "Nothing chosen" : `Values at step ${step}`;
  $("at").tBodies[0].replaceChildren(...curves.slice(0, MANY).map((curve) => {
    const at = curve.steps.indexOf(step);
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = curve.name;
    const cell = document.createElement("td");
    cell.className = "n";
    const value = at < 0 ? NaN : curve.values[at];
    cell.textContent = at < 0 ? "not analysed" : Number.isNaN(value) ? `none (${curve.why[at] || "not measured"})` : `${exact(value)}${curve.why[at] ? ` (${curve.why[at].replaceAll("_", " ")})` : ""}`;
    row.append(head, cell);
    return row;
  }));
}

function moveTo(step) {
  if (step === cursor) return;
  cursor = step;
  draw();
}

// ---- what the user does
function refresh() { offer(); gather(); draw(); remember(); }

/** The choice lies in the address, so that a view can be kept as a bookmark. */
function remember() {
  const state = KEYS.map((key) => `${key}=${encodeURIComponent(typeof chosen[key] === "number" ? JSON.stringify(DATA.names[key][chosen[key]]) : chosen[key])}`);
  try { history.replaceState(null, "", `#${state.join("&")}&models=${[...models].join(".")}&scale=${$("scale").value}`); } catch { /* a file opened from some places has no history */ }
}

function recall() {
  for (const part of location.hash.slice(1).split("&")) {
    const [key, raw] = part.split("=");
    let text = "";
    try { text = decodeURIComponent(raw || ""); } catch { continue; }
    if (KEYS.includes(key)) {
      const code = DATA.names[key].findIndex((name) => JSON.stringify(name) === text);
      if (code >= 0) chosen[key] = code; else if (text === "every" || text === "mean") chosen[key] = text;
    } else if (key === "scale" && (text === "log" || text === "linear")) $("scale").value = text;
    else if (key === "models" && text) {
      const known = text.split(".").map(Number).filter((index) => index in DATA.models);
      if (known.length) { models.clear(); known.forEach((index) => models.add(index)); }
    }
  }
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function saveTable() {
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const rows = curves.flatMap((curve) => curve.steps.map((step, at) => [quote(DATA.models[curve.index].name), quote(curve.name), step, exact(curve.values[at]), quote(curve.why[at])].join(",")));
  save("curves.csv", "text/csv", ["model,curve,step,value,status", ...rows].join("\n") + "\n");
}

function savePicture() {
  const copy = $("plot").cloneNode(true);
  const style = getComputedStyle(document.documentElement);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const rules = [...document.styleSheets[0].cssRules].map((rule) => rule.cssText).filter((text) => text.startsWith("#plot"));
  const sheet = svg("style", {}, rules.join(" ").replaceAll("#plot ", ""));
  copy.prepend(svg("rect", { width: BOX.width, height: BOX.height, style: "fill: var(--paper)" }));
  copy.prepend(sheet);
  const text = new XMLSerializer().serializeToString(copy).replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  save("picture.svg", "image/svg+xml", text);
}

DATA.models.forEach((model, index) => {
  const line = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.addEventListener("change", () => { if (box.checked) models.add(index); else if (models.size > 1) models.delete(index); else box.checked = true; refresh(); });
  model.box = box;
  line.append(box, model.name);
  $("models").append(line);
});
for (const key of KEYS) $(key).addEventListener("change", () => { const raw = $(key).value; chosen[key] = /^\d+$/.test(raw) ? Number(raw) : raw; refresh(); });
$("scale").addEventListener("change", () => { draw(); remember(); });
$("save").addEventListener("click", savePicture);
$("table").addEventListener("click", saveTable);
$("plot").addEventListener("pointermove", (event) => {
  const box = $("plot").getBoundingClientRect();
  if ($("plot").step) moveTo($("plot").step((event.clientX - box.left) * BOX.width / box.width));
});
$("plot").addEventListener("pointerleave", () => moveTo(null));
$("plot").addEventListener("keydown", (event) => {
  const steps = allSteps(), at = steps.indexOf(cursor ?? steps.at(-1));
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
  if (event.key === "Escape") moveTo(null);
  else if (to !== undefined && steps.length) { moveTo(steps[Math.min(steps.length - 1, Math.max(0, to))]); event.preventDefault(); }
});

// ---- to begin with: what most people ask first, where it is there
const favourite = [["metric", "debiased_cka"], ["component", "simple"], ["data_type", "activations"], ["split", "val"]];
for (const [key, name] of favourite) { const code = DATA.names[key].indexOf(name); if (code >= 0) chosen[key] = code; }
chosen.layer = "every";
chosen.head = "mean";
models.clear();
models.add(DATA.models.length - 1);
recall();
DATA.models.forEach((model, index) => { model.box.checked = models.has(index); });
refresh();
