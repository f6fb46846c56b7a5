// Fills the overview from index_files/: state.js, then the lists of prompts. Needs lists.js.
const AGAIN = 5000; // milliseconds between two looks at a run that goes on
const grid = find(".cards"), search = find("input"), order = find("select"), nothing = find("p.nothing");
const prompts = []; // {text, score, card}, in the order of the prompts
let state = null;

window.reprise = {
  state(given) { state = given; },
  list(number, rows) {
    rows.slice(prompts.length - number * state.inAList).forEach((row) => prompts.push(entry(...row)));
  },
};

/** A row of a list: the name of its folder ("" if it was passed over), and why it was. */
function entry(name, text, shown, score, hasPicture, why) {
  const card = element(name ? "a" : "div", "card");
  if (name) {
    card.href = `${FILES}${encodeURIComponent(name)}.html`;
    card.id = name;
  }
  card.title = text;
  const missing = (words) => element("div", "missing", words);
  let picture = missing(name ? "picture moved away" : `passed over: ${why}`);
  if (hasPicture) {
    picture = element("img");
    picture.loading = "lazy";
    picture.alt = "";
    picture.onerror = () => picture.replaceWith(missing("picture moved away"));
    picture.src = `${FILES}${encodeURIComponent(name)}.webp`;
  }
  card.append(element("div", "", picture, ...(name ? [element("b", "", shown)] : [])), element("p", "", text));
  return { text: text.toLowerCase(), score, card };
}

function showState() {
  find("#progress").textContent = state.progress + (state.running ? "" : state.done < state.total ? ", stopped" : "");
  find(".way").hidden = state.done >= state.total;
  find(".way i").style.width = `${(100 * state.done) / state.total}%`;
  const facts = [...state.facts];
  if (state.passedOver) facts.push([String(state.passedOver), "passed over"]);
  find(".facts").replaceChildren(
    ...facts.map(([value, name]) => element("li", "", element("b", "", value), element("span", "", name))));
}

function showCards() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = prompts.filter(({ text }) => words.every((word) => text.includes(word)));
  if (order.value !== "file") {
    const sign = (order.value === "best") === state.higherIsBetter ? -1 : 1;
    const scored = shown.filter(({ score }) => score !== null);
    scored.sort((one, other) => sign * (one.score - other.score));
    shown = [...scored, ...shown.filter(({ score }) => score === null)];
  }
  grid.replaceChildren(...shown.map(({ card }) => card));
  const count = (number) => number.toLocaleString("en");
  find("output").textContent = words.length ? `${count(shown.length)} of ${count(prompts.length)} prompts` : "";
  nothing.hidden = shown.length > 0;
  nothing.textContent = prompts.length ? "No prompt has these words." : "Nothing is drawn yet.";
  measure();
}

/** All cards are equally high; what is out of sight gets its height from here and is not laid out. */
function measure() {
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ");
  const first = grid.firstElementChild;
  if (!first) return;
  const size = parseFloat(getComputedStyle(first).fontSize);
  grid.style.setProperty("--card", `${parseFloat(columns[0]) + 6.4 + 3 * 1.35 * size}px`);
}

async function update() {
  await load("state.js");
  showState();
  const before = prompts.length;
  if (state.count > before) {
    const from = Math.floor(before / state.inAList), to = Math.ceil(state.count / state.inAList);
    for (let number = from; number < to; number++) {
      await load(`prompts-${number}.js`);
      if (!before && number === from) showCards(); // what is seen first does not wait for the rest
    }
  }
  if (prompts.length > before || !before) showCards();
  if (state.running) setTimeout(keepUp, AGAIN);
}

/** As `update`; a file that is being replaced just now is read the next time. */
const keepUp = () => update().catch(() => setTimeout(keepUp, AGAIN));

search.addEventListener("input", showCards);
order.addEventListener("change", showCards);
addEventListener("resize", measure);
update().then(() => {
  const at = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (at) {
    at.scrollIntoView({ block: "center", behavior: "instant" });
    at.classList.add("at");
  }
}).catch(showFault);
