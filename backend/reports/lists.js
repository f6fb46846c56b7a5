// What pages share that fill themselves from index_files/: state.js and lists. Those are scripts that call
// `reprise`, because a page that was opened as a file may not read other files. Text is only ever set as text.
const FILES = "index_files/";
const find = (selector) => document.querySelector(selector);

/** Runs a script of index_files; the number in its address keeps an older version from being shown. */
function load(name) {
  const script = document.createElement("script");
  script.src = `${FILES}${name}?${Date.now()}`;
  return new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${FILES}${name} is missing`));
    document.head.append(script);
  }).finally(() => script.remove());
}

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

/** Shown where the scripts of index_files cannot be loaded. */
function showFault(error) {
  const nothing = find("p.nothing");
  nothing.hidden = false;
  nothing.textContent = `The folder index_files was not moved along with this page: ${error.message}.`;
}
