// RePrompt Rewriter: the rewrite with its added words marked, its reason, the lock, and earlier rewrites.
// PRIP Refiner has no reason and no lock.

import { label } from "./labels.js";
import { addView, button, callAfter, el, pager, setWidget, widgetOf } from "./view.js";

export const KEY = "reprise_rewrite";
const MAX_HISTORY = 30; // rewrites that are saved in a workflow file

/** A text as [piece, is a word] pairs; by the browser's segmenter, so also in languages without spaces. */
function pieces(text) {
  if (typeof Intl.Segmenter === "function") {
    const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });
    return [...segmenter.segment(text)].map((part) => [part.segment, Boolean(part.isWordLike)]);
  }
  return text.split(/([\p{L}\p{N}]+)/u).map((part, i) => [part, i % 2 === 1]);
}

/** `text` as [piece, added] pairs. Added is what is not in the longest common word sequence with `prompt`. */
export function markAddedWords(prompt, text) {
  const all = pieces(text);
  const places = all.flatMap(([, word], i) => (word ? [i] : []));
  const now = places.map((i) => all[i][0].toLowerCase());
  const old = pieces(prompt).filter(([, word]) => word).map(([piece]) => piece.toLowerCase());
  // length[i][j]: length of the longest common subsequence of old[i:] and now[j:]
  const length = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      length[i][j] = old[i] === now[j]
        ? length[i + 1][j + 1] + 1
        : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const added = new Set(places);
  for (let i = 0, j = 0; i < old.length && j < now.length; ) {
    if (old[i] === now[j]) {
      added.delete(places[j]);
      i++;
      j++;
    } else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return all.map(([piece], i) => [piece, added.has(i)]);
}

/** The text as an element; adjacent added words are one <mark>, with the spaces between them. */
function rewriteText(prompt, text) {
  const parts = markAddedWords(prompt, text);
  const shown = el("div", "reprise-rewrite");
  let mark = null;
  parts.forEach(([piece, added], i) => {
    const between = mark && !piece.trim() && parts[i + 1]?.[1];
    if (added || between) {
      if (!mark) shown.append((mark = el("mark")));
      mark.append(piece);
    } else {
      mark = null;
      shown.append(piece);
    }
  });
  return shown;
}

const same = (one, other) => one.prompt === other.prompt && one.rewrite === other.rewrite;

/** The history with the rewrites of a run added: each rewrite once, the newest last. */
function update(state, outputs) {
  const rewrites = outputs.flatMap(({ prompt, prompts, reasons, fallbacks }) =>
    prompts.map((rewrite, i) => ({
      prompt, rewrite, reason: reasons[i] ?? "", fallback: fallbacks[i] ?? null,
    })));
  const old = state?.history ?? [];
  const history = [...old];
  for (const one of rewrites) {
    // A locked run only repeats a text, and its reason is not the model's.
    if (!history.some((other) => other.rewrite === one.rewrite && (same(one, other) || isLocked(one)))) {
      history.push(one);
    }
  }
  const recent = history.slice(-MAX_HISTORY);
  const shown = recent.findIndex((one) => rewrites.length && one.rewrite === rewrites[0].rewrite);
  return { history: recent, shown: shown < 0 ? recent.length - 1 : shown };
}

const OWN = "(locked: your own text)"; // the reason that the node returns for a locked text
const isLocked = (one) => one.reason.startsWith("(locked");

export function extend(node) {
  const toggle = widgetOf(node, "locked");
  const lock = (one, save, state) => {
    const text = widgetOf(node, "locked_prompt")?.value ?? "";
    const history = [...state.history];
    // Keep an edit that was never run.
    if (text.trim() && !history.some((other) => other.rewrite === text)) {
      history.push({ prompt: one.prompt, rewrite: text, reason: OWN, fallback: null });
    }
    setWidget(node, "locked_prompt", one.rewrite);
    setWidget(node, "locked", true);
    const recent = history.slice(-MAX_HISTORY);
    save({ history: recent, shown: Math.max(0, recent.findIndex((other) => same(one, other))) });
    widgetOf(node, "locked_prompt")?.element?.focus?.({ preventScroll: true });
  };

  const view = addView(node, KEY, {
    update,
    height: () => 170,
    draw(state, save) {
      const one = state?.history?.[state.shown];
      if (!one) return [el("div", "reprise-hint", label("rewriteHint"))];
      const locked = Boolean(toggle?.value);
      const locking = toggle && [
        button(label("lock"), label("lockTitle"),
               () => lock(one, save, state)),
        button(label("unlock"), label("unlockTitle"), () => {
          setWidget(node, "locked", false);
          save({});
        }, locked),
      ];
      return [
        el("div", "reprise-bar", [
          ...(locking ?? []),
          el("span", "reprise-state", locked ? label("locked") : ""),
          pager(state.history.length, state.shown, (shown) => save({ shown })),
        ]),
        one.fallback && el("div", "reprise-warning", label("fallback", { why: one.fallback })),
        rewriteText(one.prompt, one.rewrite),
        one.reason && el("div", "reprise-reason", isLocked(one) ? label("ownText") : one.reason),
      ];
    },
  });
  if (toggle) callAfter(toggle, "callback", () => view.show());
}
