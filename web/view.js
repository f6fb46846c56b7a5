// A view under a node's widgets: what the last runs said, kept in node.properties so that it is saved with
// the workflow and shown again after a reload. Text goes in as textContent only.

import { app } from "../../scripts/app.js";
import { label } from "./labels.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./style.css", import.meta.url).href;
document.head.append(style);

/** An element; `content` is text, an element, or a list of both. */
export function el(tag, className, content = []) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...[content].flat().filter((part) => part !== null && part !== undefined));
  return made;
}

export function button(text, title, onClick, enabled = true) {
  const made = el("button", "reprise-button", text);
  made.type = "button";
  made.title = title;
  made.disabled = !enabled;
  made.addEventListener("click", onClick);
  return made;
}

/** Arrows around "2 / 5"; null where there is nothing to turn. */
export function pager(count, shown, turn) {
  if (count < 2) return null;
  return el("span", "reprise-pager", [
    button("‹", label("earlier"), () => turn(shown - 1), shown > 0),
    el("span", "", `${shown + 1} / ${count}`),
    button("›", label("later"), () => turn(shown + 1), shown < count - 1),
  ]);
}

/** Three digits are enough to compare scores. */
export const number = (value) =>
  value === null || value === undefined ? "–" : Math.abs(value) < 1 ? value.toFixed(3) : value.toPrecision(3);

/**
 * How good each score is on its judge's range, 0 to 1; null stays null. The range is widened to what was
 * scored; where it has no end, the scores' own extreme is the end.
 */
export function goodness({ low, high, higher_is_better: higher }, scores) {
  const known = scores.filter((score) => score !== null);
  const from = Math.min(low ?? Infinity, ...known), to = Math.max(high ?? -Infinity, ...known);
  const part = (score) => (to > from ? (higher === false ? to - score : score - from) / (to - from) : 1);
  return scores.map((score) => (score === null ? null : part(score)));
}

/** A bar of a length in 0..1. */
export function bar(length) {
  const inner = el("div", "reprise-score-bar");
  inner.style.width = `${Math.round(100 * length)}%`;
  return el("div", "reprise-track", inner);
}

/** What a judge's scores mean, in words. */
export function judged({ judge, low, high, higher_is_better: higher }) {
  const better = label(higher === false ? "lower" : "higher");
  return label("judged", { judge, low: low ?? "−∞", high: high ?? "∞", better });
}

export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

/** Sets a widget as a user would; false where the node has none of that name. */
export function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return false;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  return true;
}

/** Runs `then` after whatever the object's method did before; only this one object is touched. */
export function after(object, method, then) {
  const before = object[method];
  object[method] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Tells the workflow's change tracker, so that the browser's draft and the undo history have it. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  app.graph?.setDirtyCanvas?.(true, true);
}

/**
 * Adds the view. `key`: of the node's ui output and of node.properties. `take(state, outputs)` gives the new
 * state after a run; `draw(state, save)` the elements to show; `save(changes)` stores and draws again.
 */
export function addView(node, key, { take, draw, height }) {
  const body = el("div", "reprise-view");
  body.dataset.captureWheel = "true"; // the Vue renderer scrolls it instead of zooming
  let least = 30;
  const widget = node.addDOMWidget(key, "reprise_view", body, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => least,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;

  const state = () => node.properties?.[key];
  const show = () => {
    body.replaceChildren(...draw(state(), save).filter(Boolean));
    least = state() ? height(state()) : 30;
    body.style.minHeight = `${least}px`;
    const [width, needed] = node.computeSize();
    if (node.size[1] < needed || node.size[0] < width) {
      node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
    }
    node.setDirtyCanvas?.(true, true);
  };
  const save = (changes) => {
    node.properties[key] = { ...state(), ...changes };
    show();
    remember();
  };

  after(node, "onExecuted", (output) => {
    if (output?.[key]?.length) save(take(state(), output[key]));
  });
  after(node, "onConfigure", show);
  show();
  return { show, save, state };
}
