// Reflection Loop: the rounds with their pictures, scores, prompts and what the judge found wrong.

import { api } from "../../scripts/api.js";
import { label } from "./labels.js";
import { addView, bar, el, goodness, judged, number, pager } from "./view.js";

export const KEY = "reprise_reflection";

/** The round's picture; gone where the server has cleared its temporary files. */
function thumbnail({ picture }) {
  if (!picture) return null;
  const image = el("img", "reprise-thumbnail");
  image.alt = "";
  image.addEventListener("error", () => image.remove());
  image.src = api.apiURL(`/view?${new URLSearchParams(picture)}`);
  return image;
}

function rounds(report) {
  const lengths = goodness(report, report.rounds.map((round) => round.score));
  return report.rounds.map((round, i) => {
    const best = i === report.best;
    const head = el("div", "reprise-round-head", [
      el("span", "", label("round", round)),
      el("span", "", number(round.score)),
      bar(lengths[i]),
      best ? el("span", "reprise-best", `★ ${label("best")}`) : null,
    ]);
    head.title = `${judged(report)}\n${label("seed")}: ${round.seed}`;
    return el("div", best ? "reprise-round reprise-round-best" : "reprise-round", [
      thumbnail(round),
      el("div", "reprise-wide", [
        head,
        round.verdict === "yes"
          ? el("div", "reprise-good", `✓ ${label("satisfied")}`)
          : el("div", "reprise-warning", round.critique),
        el("div", "reprise-hint", round.prompt),
      ]),
    ]);
  });
}

/**
 * The loop tells all of its prompts, at its start still without rounds, or whole from the cache; each round
 * then tells its own prompt alone. What an earlier run left stays until the first round of this one is there.
 */
function take(state, told) {
  const old = state?.reports ?? [], [first] = told;
  const at = old.findIndex((one) => one.id === first.id);
  if (first.part && at >= 0) return { reports: old.with(at, first), shown: at };
  const earlier = (id) => old.find((one) => one.id === id && one.rounds.length);
  return { reports: told.map((one) => (one.rounds.length ? one : earlier(one.id) ?? one)), shown: 0 };
}

export function extend(node) {
  addView(node, KEY, {
    take,
    height: ({ reports, shown }) => Math.min(34 + 82 * reports[shown].rounds.length, 380),
    draw(state, save) {
      const report = state?.reports?.[state.shown];
      if (!report?.rounds.length) return [el("div", "reprise-hint", label("reflectionHint"))];
      return [
        pager(state.reports.length, state.shown, (shown) => save({ shown })),
        ...rounds(report),
      ];
    },
  });
}
