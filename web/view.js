// A view below a node's widgets with the results of its last runs. They are stored in node.properties, so they
// are saved with the workflow and shown again after a reload. Text is only ever set as textContent.

import { app } from "../../scripts/app.js";
import { label } from "./labels.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./style.css", import.meta.url).href;
document.head.append(style);

/** An element; `content` is text, an element, or a list of both; null and undefined are left out. */
export function el(tag, className, content = []) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...[content].flat().filter((part) => part !== null && part !== undefined));
  return element;
}

export function button(text, title, onClick, enabled = true) {
  const element = el("button", "reprise-button", text);
  element.type = "button";
  element.title = title;
  element.disabled = !enabled;
  element.addEventListener("click", onClick);
  return element;
}

/** Arrows around "2 / 5"; `turn(index)` shows another page. Null for fewer than two pages. */
export function pager(count, shown, turn) {
  if (count < 2) return null;
  return el("span", "reprise-pager", [
    button("‹", label("earlier"), () => turn(shown - 1), shown > 0),
    el("span", "", `${shown + 1} / ${count}`),
    button("›", label("later"), () => turn(shown + 1), shown < count - 1),
  ]);
}

/** A score with three digits; a dash for none. */
export const number = (value) =>
  value === null || value === undefined ? "–" : Math.abs(value) < 1 ? value.toFixed(3) : value.toPrecision(3);

/**
 * Each score's place in its judge's range: 0 is worst, 1 best; null stays null. The range is widened to
 * include all scores; an infinite end is replaced by the scores' own extreme.
 */
export function relativeScores({ low, high, higher_is_better: higher }, scores) {
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

/** The judge's range and direction as text. */
export function describeJudge({ judge, low, high, higher_is_better: higher }) {
  const better = label(higher === false ? "lower" : "higher");
  return label("judgeRange", { judge, low: low ?? "−∞", high: high ?? "∞", better });
}

export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name);

/** Sets a widget as a user would; returns false if the node has no widget of that name. */
export function setWidget(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget) return false;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  return true;
}

/** Calls `then` after each call of the object's method; changes only this one object. */
export function callAfter(object, method, then) {
  const before = object[method];
  object[method] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

/** Reports a change to the workflow's change tracker, for the browser's draft and the undo history. */
export function recordChange() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  app.graph?.setDirtyCanvas?.(true, true);
}

/**
 * Adds the view. `key` is the key of the node's ui output and of node.properties. `update(state, outputs)`
 * returns the new state after a run; `draw(state, save)` returns the elements to show; `save(changes)` stores
 * changes of the state and draws again; `height(state)` is the least height in pixels.
 */
export function addView(node, key, { update, draw, height }) {
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
    recordChange();
  };

  callAfter(node, "onExecuted", (output) => {
    if (output?.[key]?.length) save(update(state(), output[key]));
  });
  callAfter(node, "onConfigure", show);
  show();
  return { show, save, state };
}
