"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const PALETTE = ["#2f6fb3", "#c2622d", "#3f8f5f", "#9a5bb0", "#b8902a", "#3a9aa8", "#a8485e", "#6b7280"];
const number = value => value === null || value === undefined ? "" : typeof value === "string" ? value
  : Number.isInteger(value) ? value.toLocaleString("en") : value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 3 : 1 });
const percent = (part, all) => all ? (100 * part / all).toLocaleString("en", { maximumFractionDigits: 1 }) + " %" : "";

// Everything from the run is set as text, never as markup.
function el(tag, text, name, ...children) {
  const node = document.createElement(tag);
  if (text !== null && text !== undefined) node.textContent = text;
  if (name) node.className = name;
  node.append(...children);
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const nav = el("nav");
function section(title, id, ...children) {
  const link = el("a", title);
  link.href = "#" + id;
  nav.append(link);
  const node = el("section", null, null, el("h2", title), ...children);
  node.id = id;
  document.body.append(node);
  return node;
}
// Columns that are empty in every row are left out.
function table(columns, rows) {
  const shown = columns.filter(([, key]) => rows.some(row => row[key] !== null && row[key] !== undefined && row[key] !== ""));
  const numeric = key => rows.every(row => row[key] === null || row[key] === undefined || typeof row[key] === "number");
  const head = el("tr", null, null, ...shown.map(([label, key]) => el("th", label, numeric(key) ? "n" : "")));
  const body = rows.map(row => el("tr", null, null, ...shown.map(([, key]) => el("td", number(row[key]), numeric(key) ? "n" : ""))));
  return el("div", null, "scroll", el("table", null, null, head, ...body));
}
function bars(counts, lost) {
  const entries = Object.entries(counts), most = Math.max(1, ...entries.map(([, n]) => n)), all = entries.reduce((sum, [, n]) => sum + n, 0);
  return entries.map(([label, n]) => {
    const bar = el("i");
    bar.style.width = 100 * n / most + "%";
    const row = el("div", null, "bar" + (lost ? " lost" : ""), el("span", label), bar, el("span", number(n)));
    row.title = percent(n, all);
    return row;
  });
}
// Bars of a round width over [length, count] pairs in ascending order.
function histogram(lengths) {
  const low = lengths[0][0], high = lengths.at(-1)[0], bin = [5, 10, 20, 50, 100].find(bin => high - low < 20 * bin) || 500;
  const first = Math.floor(low / bin), counts = Array(Math.floor(high / bin) - first + 1).fill(0);
  for (const [length, count] of lengths) counts[Math.floor(length / bin) - first] += count;
  const width = 720, most = Math.max(...counts), step = width / counts.length, every = Math.ceil(counts.length / 12);
  const bars = counts.flatMap((count, place) => {
    const from = (first + place) * bin, height = 120 * count / most;
    const bar = svg("rect", { x: place * step + 1, width: Math.max(1, step - 2), y: 130 - height, height }, svg("title", {}, `${number(from)} to ${number(from + bin - 1)} words: ${number(count)}`));
    return place % every ? [bar] : [bar, svg("text", { x: place * step + 1, y: 148 }, number(from))];
  });
  return svg("svg", { viewBox: `0 0 ${width} 160`, role: "img" }, ...bars, svg("text", { x: width, y: 18, "text-anchor": "end" }, "captions by number of words"));
}
// Of a sample, questions after the second are folded away.
function record(row, shown = Infinity) {
  const node = el("article", null, null, el("div", `${row.id} · ${row.source}`, "quiet"), el("h3", "Seed"), el("div", row.seed, "text"),
    el("h3", `Caption (${row.words} words)`), el("div", row.caption, "text"));
  for (const made of row.conversations) {
    node.append(el("h3", made.task.replaceAll("_", " ")));
    const turns = made.turns.map(turn => el("div", turn.value, "text " + (turn.from === "gpt" ? "gpt" : "human")));
    node.append(...turns.slice(0, 2 * shown));
    if (turns.length > 2 * shown) node.append(el("details", null, null, el("summary", `${turns.length / 2 - shown} more`), ...turns.slice(2 * shown)));
  }
  return node;
}
function refused(row) {
  const request = el("details", null, null, el("summary", "request"), el("div", row.request, "text"));
  return el("article", null, null, el("div", `${row.id} · ${plain(row.stage)} · ${row.reason}`, "quiet"), el("h3", "Raw answer"), el("div", row.raw, "text"), request);
}
// A browser of rows with filters; the arrow keys page through the one that was used last.
let active = null;
function browser(rows, filters, show) {
  let place = 0, found = rows;
  const controls = el("div", null, "filters"), view = el("div"), count = el("span", null, "quiet");
  const draw = () => {
    view.replaceChildren(...(found.length ? [show(found[place])] : [el("p", "No row matches.", "quiet")]));
    count.textContent = found.length ? `${number(place + 1)} of ${number(found.length)}` : "";
  };
  const move = step => { if (found.length) { place = (place + step + found.length) % found.length; draw(); } };
  const inputs = filters.map(([label, options, test]) => {
    const input = options ? el("select", null, null, el("option", `all ${label}`), ...options.map(option => el("option", option))) : el("input");
    if (!options) { input.type = "search"; input.placeholder = label; }
    input.setAttribute("aria-label", label);
    const chosen = () => options ? (input.selectedIndex ? input.value : null) : input.value || null;
    input.addEventListener("input", () => {
      found = rows.filter(row => inputs.every(([value, matches]) => value() === null || matches(row, value())));
      place = 0;
      draw();
    });
    controls.append(input);
    return [chosen, test];
  });
  const back = el("button", "←"), next = el("button", "→"), own = { move, go: wanted => {
    controls.querySelectorAll("select").forEach(input => { input.selectedIndex = 0; });
    controls.querySelectorAll("input").forEach(input => { input.value = ""; });
    [found, place, active] = [rows, wanted, own];
    draw();
  } };
  back.addEventListener("click", () => { active = own; move(-1); });
  next.addEventListener("click", () => { active = own; move(1); });
  controls.append(back, next, count);
  active = active || own;
  draw();
  return [own, controls, view];
}
addEventListener("keydown", event => {
  if (event.target.matches?.("input, select") || !active) return;
  if (event.key === "ArrowRight") active.move(1);
  if (event.key === "ArrowLeft") active.move(-1);
});
const plain = name => name.replace("instructions/", "").replace("judgements/", "judge, ").replace("image_embeddings/", "image embeddings, ").replaceAll("_", " ");
const renamed = counts => Object.fromEntries(Object.entries(counts).map(([name, count]) => [plain(name), count]));
const group = source => source.startsWith("domain_") ? "domain labels" : source;
const distinct = values => [...new Set(values)].sort();

const sum = (...keys) => facts.stages.reduce((sum, stage) => sum + keys.reduce((part, key) => part + stage[key], 0), 0);
const made = name => facts.funnel.filter(step => step.step.startsWith(name)).reduce((sum, step) => sum + step.rows, 0);
const tiles = [["captions", made("captions")], ["conversations", made("instructions/")], ["tokens", sum("prompt_tokens", "answer_tokens")], ["hours", sum("hours")]];
if (facts.stages.some(stage => stage.usd !== null)) tiles.push(["USD", sum("usd")]);

document.title = `${facts.name}: ${facts.path}`;
document.body.append(el("h1", facts.name), el("div", `${facts.path} · begun ${facts.created}`, "quiet"),
  el("div", facts.models.join(" · "), "quiet"));
if (facts.embedded) document.body.append(el("p", "The text was written by the embedded demonstration model. It is fluent and often wrong: do not train on it.", "warn"));
document.body.append(nav, el("div", null, "tiles", ...tiles.map(([label, value]) => el("div", null, null, el("b", number(value)), label))));

section("Samples", "samples", ...(facts.rows.length ? facts.rows.slice(0, 3).map(row => record(row, 2)) : [el("p", "There are no captions yet.", "quiet")]));
section("Rejected rows", "rejected", ...(facts.rejected.length ? browser(facts.rejected, [
  ["reasons", distinct(facts.rejected.map(row => row.reason)), (row, reason) => row.reason === reason],
  ["stages", distinct(facts.rejected.map(row => row.stage)), (row, stage) => row.stage === stage]], refused).slice(1) : [el("p", "None.", "quiet")]));

const steps = Object.fromEntries(facts.funnel.map(step => [plain(step.step), step.rows]));
const losses = facts.funnel.flatMap(step => Object.entries(step.lost || {}).map(([reason, rows]) => ({ step: plain(step.step), reason: plain(reason), rows })));
section("Funnel", "funnel", el("p", "Rows at each step. Each task is asked about its share of the captions.", "quiet"), ...bars(steps),
  ...facts.funnel.filter(step => step.due_shards).map(step => el("p", `${plain(step.step)}: ${step.due_shards} shards are not finished.`, "quiet")),
  ...(losses.length ? [el("h3", "Rows that were dropped or rejected"), table([["step", "step"], ["reason", "reason"], ["rows", "rows"]], losses)] : []));

const sources = {};
for (const row of facts.sources) {
  const sum = sources[group(row.source)] ||= { source: group(row.source), license: new Set(), read: 0, seeds: 0, captions: 0, conversations: 0 };
  if (row.license) sum.license.add(row.license);
  for (const key of ["read", "seeds", "captions", "conversations"]) sum[key] += row[key] || 0;
}
section("Sources", "sources", table([["source", "source"], ["licence", "license"], ["rows read", "read"], ["seeds", "seeds"], ["captions", "captions"], ["conversations", "conversations"]],
  Object.values(sources).map(row => ({ ...row, license: [...row.license].join(", ") }))));

const all = facts.words.reduce((sum, [, count]) => sum + count, 0), mean = facts.words.reduce((sum, [length, count]) => sum + length * count, 0) / all;
const words = all ? [el("p", `A caption has ${number(mean)} words on average, ${number(facts.words[0][0])} to ${number(facts.words.at(-1)[0])} (paper: 129, 51 to 483).`), histogram(facts.words)] : [];
section("Text", "text", ...words,
  ...(Object.keys(facts.letters).length ? [el("h3", "Right answers by letter"), ...bars(facts.letters)] : []),
  ...Object.entries(facts.types).flatMap(([task, counts]) => [el("h3", `Question types, ${plain(task)}`), ...bars(renamed(counts))]),
  ...facts.stages.filter(stage => Object.keys(stage.dropped).length).flatMap(stage => [el("h3", `Questions that were dropped from accepted answers, ${plain(stage.name)}`), ...bars(renamed(stage.dropped), true)]),
  ...Object.entries(facts.verdicts).flatMap(([stage, counts]) => Object.keys(counts).length ? [el("h3", `Verdicts of the ${plain(stage)}`), ...bars(renamed(counts))] : []));

const gap = section("Modality gap", "gap", el("p", facts.gap.note), ...(facts.gap.rows.length ? [table([["figure", "figure"], ["text embeddings", "before"], [`after ${facts.method}`, "after"]], facts.gap.rows)] : []));

section("Cost", "cost", table([["stage", "name"], ["rows", "rows"], ["requests", "requests"], ["prompt tokens", "prompt_tokens"], ["answer tokens", "answer_tokens"], ["hours", "hours"], ["rows/s", "rows_per_s"], ["USD", "usd"]], facts.stages.map(stage => ({ ...stage, name: plain(stage.name) }))),
  ...facts.stages.filter(stage => Object.keys(stage.retries).length).flatMap(stage => [el("h3", `Requests sent again, ${plain(stage.name)}`), ...bars(renamed(stage.retries), true)]));

const lengths = { "under 100 words": [0, 99], "100 to 150 words": [100, 150], "over 150 words": [151, Infinity] };
const [captions, ...captionNodes] = browser(facts.rows, [
  ["tasks", distinct(facts.rows.flatMap(row => row.conversations.map(made => made.task))), (row, task) => row.conversations.some(made => made.task === task)],
  ["sources", distinct(facts.rows.map(row => row.source)), (row, source) => row.source === source],
  ["lengths", Object.keys(lengths), (row, name) => row.words >= lengths[name][0] && row.words <= lengths[name][1]],
  ["search", null, (row, text) => JSON.stringify(row).toLowerCase().includes(text.toLowerCase())]], row => record(row));
const browse = section("Rows", "rows", el("p", `${number(facts.rows.length)} rows drawn at random. Use ← and →.`, "quiet"), ...captionNodes);

if (facts.cloud.length) {
  const names = distinct(facts.cloud.map(point => group(point.source))), colour = name => PALETTE[names.indexOf(name) % PALETTE.length];
  const told = el("p", "Hover over a point to read it; click to open its row.", "quiet");
  const points = facts.cloud.map(point => {
    const text = point.row === null ? point.id : facts.rows[point.row].caption;
    const circle = svg("circle", { cx: 10 + 700 * point.x, cy: 10 + 300 * point.y, r: 4, fill: colour(group(point.source)), "fill-opacity": 0.7 }, svg("title", {}, text));
    circle.addEventListener("mouseenter", () => { told.textContent = text; });
    circle.addEventListener("click", () => { if (point.row !== null) { captions.go(point.row); browse.scrollIntoView(); } });
    return circle;
  });
  const legend = names.map(name => { const dot = el("i"); dot.style.background = colour(name); return el("span", null, null, dot, document.createTextNode(name)); });
  gap.append(el("h3", "Vectors in the plane of their two main directions"), el("div", null, "legend", ...legend), svg("svg", { viewBox: "0 0 720 320" }, ...points), told);
}
document.getElementById(location.hash.slice(1))?.scrollIntoView();
