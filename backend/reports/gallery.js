// Fills the gallery from index_files/: about.js, state.js, then lists of pictures. Needs lists.js.
const PICTURES = "pictures/", AGAIN = 3000; // milliseconds between two looks
const MOST_CHOICES = 300, MOST_TABLES = 30, MOST_ROWS = 200, MOST_COLUMNS = 40;
const UNDER = 46, GAP = 16; // pixels below a picture for its words, and between two
const wall = find("#wall"), grids = find("#grids"), search = find("input[type=search]"), order = find("#order");
const axes = [find("#x"), find("#y")], size = find("#size"), only = find("#only"), nothing = find("p.nothing"), dialog = find("dialog");
const pictures = []; // by their place in the lists
const stamps = {}; // of the lists that were read
const chosen = new Map(); // column -> value
let several = false; // whether any group has more than one picture with a score
let aspect = 1; // of the pictures, as the first one has it
let about = null, state = null, shown = [], tiles = new Map(), columns = [], at = -1;

window.reprise = {
  about(given) { about = given; },
  state(given) { state = given; },
  list(number, rows) {
    rows.forEach((row, i) => { pictures[number * state.inAList + i] = entry(number * state.inAList + i, ...row); });
  },
};

function entry(place, name, kind, small, group, prompt, text, seed, settings, labels, set, score, scores, server, seconds, reason, rank) {
  const hay = [prompt, text, ...Object.values(settings), ...Object.values(labels)].join("\n").toLowerCase();
  return { place, name, kind, small, group, prompt, text, seed, settings, labels, set, score, scores, server, seconds, reason, rank, hay };
}

const number = (value) => Math.abs(value) < 10 ? value.toFixed(2) : Math.abs(value) < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
const count = (value) => value.toLocaleString("en");
const short = (text, most = 60) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** What a picture has in a column: of all pictures' own, of settings, of labels. */
function valueOf(picture, column) {
  const value = column === "prompt" ? picture.prompt : column === "seed" ? picture.seed : column === "server" ? picture.server
    : column in picture.settings ? picture.settings[column] : picture.labels[column];
  return value === undefined || value === null ? "" : value;
}

function sorted(values) {
  const numbers = values.every((value) => value === "" || !Number.isNaN(Number(value)));
  return values.sort((one, other) => (numbers ? Number(one) - Number(other) : 0));
}

/** The columns with more than one value, and their values: numbers in their order, words as they come. */
function findColumns() {
  const settings = new Set(about.columns), labels = new Set(about.labels);
  for (const picture of pictures) {
    Object.keys(picture.settings).forEach((name) => settings.add(name));
    Object.keys(picture.labels).forEach((name) => labels.add(name));
  }
  const names = [...new Set(["prompt", ...settings, "seed", ...labels, "server"])];
  columns = [];
  for (const name of names) {
    const values = new Map();
    for (const picture of inOrder()) values.set(String(valueOf(picture, name)), valueOf(picture, name));
    if (values.size > 1) columns.push({ name, values: name === "prompt" ? [...values.keys()] : sorted([...values.keys()]) });
  }
  const filters = find("#filters");
  filters.replaceChildren(...columns.filter(({ values }) => values.length <= MOST_CHOICES).map(({ name, values }) => {
    const select = element("select", chosen.has(name) ? "set" : "", new Option(`${short(name, 24)}: all`, "\0"));
    values.forEach((value) => select.append(new Option(`${name === "prompt" ? "" : `${short(name, 24)} `}${short(value, 48) || "(none)"}`, value)));
    select.setAttribute("aria-label", name);
    select.value = chosen.has(name) ? chosen.get(name) : "\0";
    select.addEventListener("change", () => {
      if (select.value === "\0") chosen.delete(name); else chosen.set(name, select.value);
      select.className = chosen.has(name) ? "set" : "";
      show();
    });
    const space = document.createTextNode(" ");
    const both = document.createDocumentFragment();
    both.append(select, space);
    return both;
  }));
  for (const axis of axes) {
    const now = axis.value;
    axis.replaceChildren(new Option("–", ""), ...columns.map(({ name }) => new Option(short(name, 24), name)));
    axis.value = columns.some(({ name }) => name === now) ? now : "";
  }
  const scored = pictures.some(({ score }) => score !== null);
  for (const option of order.options) option.disabled = !scored && ["best", "worst"].includes(option.value);
}

const inOrder = () => [...pictures].sort((one, other) => one.rank - other.rank || one.place - other.place);
const better = (one, other) => (about.higherIsBetter ? other.score - one.score : one.score - other.score);

/** The best picture of each group. One that is alone is the best, too, but is not marked. */
function best(list) {
  const found = new Map(), counts = new Map();
  for (const picture of list) {
    if (picture.score === null) continue;
    const now = found.get(picture.group);
    counts.set(picture.group, (counts.get(picture.group) || 0) + 1);
    if (!now || better(now, picture) > 0) found.set(picture.group, picture);
  }
  several = [...counts.values()].some((many) => many > 1);
  return found;
}

function show() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const winners = best(pictures);
  only.hidden = !several;
  pictures.forEach((picture) => { picture.best = winners.get(picture.group) === picture; });
  shown = inOrder().filter((picture) => words.every((word) => picture.hay.includes(word))
    && [...chosen].every(([name, value]) => String(valueOf(picture, name)) === value)
    && (!only.querySelector("input").checked || picture.best));
  if (order.value === "new") shown.sort((one, other) => other.place - one.place);
  if (order.value === "best" || order.value === "worst") {
    const scored = shown.filter(({ score }) => score !== null).sort(better);
    if (order.value === "worst") scored.reverse();
    shown = [...scored, ...shown.filter(({ score }) => score === null)];
  }
  find("output").textContent = shown.length === pictures.length ? `${count(pictures.length)} pictures` : `${count(shown.length)} of ${count(pictures.length)} pictures`;
  nothing.hidden = shown.length > 0;
  nothing.textContent = pictures.length ? "No picture fits this choice." : "Nothing is drawn yet.";
  const comparing = axes.some((axis) => axis.value);
  wall.hidden = comparing;
  grids.hidden = !comparing;
  if (comparing) compare(); else { clear(); layOut(); }
}

// The wall: only what is in sight is in the page

function clear() {
  tiles.forEach((tile) => tile.remove());
  tiles = new Map();
}

function layOut() {
  const width = wall.clientWidth, many = Math.max(1, Math.floor((width + GAP) / (Number(size.value) + GAP)));
  const side = (width - GAP * (many - 1)) / many, tall = side / aspect + UNDER, high = tall + GAP;
  wall.style.height = `${Math.ceil(shown.length / many) * high}px`;
  const top = -wall.getBoundingClientRect().top, first = Math.max(0, Math.floor(top / high) - 1) * many;
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / high) + 1) * many);
  for (const [place, tile] of tiles) if (place < first || place >= last) { tile.remove(); tiles.delete(place); }
  for (let place = first; place < last; place++) {
    let tile = tiles.get(place);
    if (!tile) { tile = tileOf(shown[place], place); tiles.set(place, tile); wall.append(tile); }
    tile.style.cssText = `left:${(place % many) * (side + GAP)}px;top:${Math.floor(place / many) * high}px;width:${side}px;height:${tall}px`;
  }
}

function tileOf(picture, place, words = caption(picture)) {
  const frame = element("span", "frame", pictureOf(picture, true));
  if (picture.score !== null) frame.append(element("b", picture.best && several ? "score best" : "score", number(picture.score)));
  const tile = element("button", "tile", frame);
  if (words) tile.append(element("span", "under", ...words));
  tile.title = picture.prompt;
  tile.addEventListener("click", () => open(place));
  return tile;
}

function caption(picture) {
  const settings = Object.entries(picture.settings).map(([name, value]) => `${short(name.split(".").pop(), 14)} ${short(String(value), 24)}`);
  const more = [...settings, ...(picture.seed === null ? [] : [`seed ${picture.seed}`])].join(" · ");
  return settings.length ? [element("i", "", more), document.createElement("br"), short(picture.prompt, 90)] : [short(picture.prompt, 120) || element("i", "", more)];
}

function pictureOf(picture, small) {
  const missing = (words) => element("div", "missing", words);
  if (picture.kind === "file" || picture.kind === "sound") return missing(picture.name);
  const shows = element(picture.kind === "video" ? "video" : "img");
  shows.onerror = () => shows.replaceWith(missing("picture moved away"));
  if (picture.kind === "video") {
    Object.assign(shows, { preload: "metadata", muted: true, loop: true, controls: !small });
    if (small) { shows.onmouseenter = () => shows.play(); shows.onmouseleave = () => shows.pause(); }
  } else { shows.alt = ""; shows.loading = small ? "lazy" : "eager"; shows.decoding = "async"; }
  if (small) shows.onload = () => setAspect(shows.naturalWidth / shows.naturalHeight);
  shows.src = small && picture.small ? `${FILES}${encodeURIComponent(picture.name)}.webp` : PICTURES + encodeURIComponent(picture.name);
  return shows;
}

/** Frames have the shape of the first picture: most sets have one. */
function setAspect(found) {
  if (document.body.style.getPropertyValue("--aspect") || !found) return;
  aspect = Math.min(2, Math.max(0.5, found));
  document.body.style.setProperty("--aspect", aspect);
  if (!wall.hidden) layOut();
}

// Grids: a column of the set from left to right, another from top to bottom

function compare() {
  const [x, y] = axes.map((axis) => axis.value);
  const values = (name, list, most) => {
    if (!name) return [null];
    const there = new Set(list.map((picture) => String(valueOf(picture, name))));
    return columns.find((column) => column.name === name).values.filter((value) => there.has(value)).slice(0, most);
  };
  const byPrompt = new Map();
  for (const picture of shown) {
    const key = x === "prompt" || y === "prompt" ? "" : picture.prompt;
    if (!byPrompt.has(key)) byPrompt.set(key, []);
    byPrompt.get(key).push(picture);
  }
  grids.style.setProperty("--side", `${size.value}px`);
  const made = [...byPrompt].slice(0, MOST_TABLES).map(([prompt, list]) => {
    const cells = new Map();
    for (const picture of list) {
      const key = JSON.stringify([x ? String(valueOf(picture, x)) : null, y ? String(valueOf(picture, y)) : null]);
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(picture);
    }
    const across = values(x, list, MOST_COLUMNS), down = values(y, list, MOST_ROWS);
    const head = element("tr", "", ...(y ? [element("th", "", "")] : []), ...across.map((value) => element("th", "", value === null ? "" : `${x === "prompt" ? "" : `${short(x.split(".").pop(), 16)} `}${short(value, 80)}`)));
    const body = down.map((below) => element("tr", "",
      ...(y ? [element("th", "", `${y === "prompt" ? "" : `${short(y.split(".").pop(), 16)} `}${short(below, 80)}`)] : []),
      ...across.map((beside) => cell(cells.get(JSON.stringify([beside, below])) || []))));
    const table = element("table", "", element("thead", "", ...(x ? [head] : [])), element("tbody", "", ...body));
    return element("section", "grid", ...(prompt ? [element("h2", "", prompt)] : []), table);
  });
  if (byPrompt.size > MOST_TABLES) made.push(element("p", "nothing", `And ${count(byPrompt.size - MOST_TABLES)} more prompts: choose one, or search for words.`));
  grids.replaceChildren(...made);
}

function cell(list) {
  if (!list.length) return element("td", "", element("div", "empty", state.running ? "not yet" : "none"));
  const scored = list.filter(({ score }) => score !== null).sort(better), first = scored[0] || list[0];
  const made = element("td", "", tileOf(first, shown.indexOf(first), null));
  if (list.length > 1) made.append(element("small", "", `${scored.length ? "best" : "first"} of ${list.length}`));
  return made;
}

// One picture, large

function open(place) {
  at = place;
  const picture = shown[place];
  const stage = dialog.querySelector(".stage"), before = stage.querySelector("img, video, .missing");
  const shows = pictureOf(picture, false);
  shows.onload = () => stage.classList.toggle("small", shows.naturalWidth < 300);
  if (before) before.replaceWith(shows); else stage.prepend(shows);
  dialog.querySelector(".words").textContent = picture.text || picture.prompt || picture.name;
  const facts = [];
  if (picture.text && picture.text !== picture.prompt) facts.push(["asked for", picture.prompt]);
  if (picture.reason) facts.push(["reason", picture.reason]);
  if (picture.score !== null) facts.push(["score", number(picture.score) + (picture.best && several ? ", the best of its seeds" : "")]);
  if (Object.keys(picture.scores).length > 1) for (const [name, score] of Object.entries(picture.scores)) facts.push([name, number(score)]);
  if (picture.seed !== null) facts.push(["seed", picture.seed]);
  facts.push(...Object.entries(picture.settings), ...Object.entries(picture.labels));
  facts.push(["seconds", picture.seconds.toFixed(1)], ["server", picture.server], ["file", picture.name]);
  dialog.querySelector("dl").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]));
  find("#open").href = PICTURES + encodeURIComponent(picture.name);
  for (const [name, by] of [[".back", -1], [".on", 1]]) dialog.querySelector(name).hidden = !shown[place + by];
  if (!dialog.open) dialog.showModal();
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

/** The command that draws this picture alone. */
function commandOf(picture) {
  const words = [...about.command], text = picture.text || picture.prompt;
  if (text && about.prompts.length) words.push("--set", `prompt=${text}`);
  if (picture.seed !== null) words.push("--seed", String(picture.seed));
  for (const [name, value] of Object.entries(picture.set)) words.push("--set", `${name}=${value}`);
  return words.map(quoted).join(" ");
}

/** The workflow that draws this picture, as ComfyUI's API format. */
function workflowOf(picture) {
  const graph = structuredClone(about.workflow), text = picture.text || picture.prompt;
  const put = (socket, value) => {
    const dot = socket.lastIndexOf("."), node = graph[socket.slice(0, dot)];
    if (node) node.inputs[socket.slice(dot + 1)] = value;
  };
  Object.entries(picture.set).forEach(([socket, value]) => put(socket, value));
  if (text) about.prompts.forEach((socket) => put(socket, text));
  if (picture.seed !== null) about.seeds.forEach((socket) => put(socket, picture.seed));
  return JSON.stringify(graph, null, 1);
}

async function copy(button, text) {
  const words = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { prompt("Copy this:", text); }
  setTimeout(() => { button.textContent = words; }, 1600);
}

find("#command").addEventListener("click", (event) => copy(event.currentTarget, commandOf(shown[at])));
find("#workflow").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([workflowOf(shown[at])], { type: "application/json" }));
  link.download = `${shown[at].name.replace(/\.\w+$/, "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.querySelector(".back").addEventListener("click", () => shown[at - 1] && open(at - 1));
dialog.querySelector(".on").addEventListener("click", () => shown[at + 1] && open(at + 1));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { const shows = dialog.querySelector("video"); if (shows) shows.pause(); });
addEventListener("keydown", (event) => {
  if (!dialog.open) return;
  if (event.key === "ArrowLeft" && shown[at - 1]) open(at - 1);
  if (event.key === "ArrowRight" && shown[at + 1]) open(at + 1);
});

// What changes

async function update() {
  await load("state.js");
  const progress = find("#progress");
  progress.textContent = state.progress;
  progress.className = state.running ? "live" : "";
  const fresh = Object.entries(state.stamps).filter(([list, stamp]) => stamps[list] !== stamp);
  for (const [list, stamp] of fresh) {
    await load(`pictures-${list}.js`);
    stamps[list] = stamp;
  }
  pictures.length = state.count;
  if ((fresh.length && !dialog.open) || !columns.length) { findColumns(); show(); }
  if (state.running) setTimeout(keepUp, AGAIN);
}

/** As `update`; a file that is being replaced just now is read the next time. */
const keepUp = () => update().catch(() => setTimeout(keepUp, AGAIN));

for (const [what, kind] of [[search, "input"], [order, "change"], [only, "change"], ...axes.map((axis) => [axis, "change"])]) what.addEventListener(kind, show);
size.addEventListener("input", () => (grids.hidden ? layOut() : grids.style.setProperty("--side", `${size.value}px`)));
addEventListener("scroll", () => { if (!wall.hidden) layOut(); }, { passive: true });
addEventListener("resize", () => { if (!wall.hidden) layOut(); });
load("about.js").then(update).catch(showFault);
