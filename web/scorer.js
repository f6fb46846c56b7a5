// Reward Scorer: images by rank, a bar for each score, and what the judge criticises.

import { addView, el, number, pager } from "./view.js";

export const KEY = "reprise_scores";

/** Lengths of the bars, 0 to 1: scores within 0..1 as they are, others from the batch's lowest to highest. */
export function bars(scores) {
  const low = Math.min(0, ...scores), high = Math.max(...scores);
  if (low === 0 && high <= 1) return scores;
  return scores.map((score) => (high > low ? (score - low) / (high - low) : 1));
}

function table({ judge, scores, ranking, critiques }) {
  const lengths = bars(scores);
  const rows = ranking.map((i, rank) => {
    const bar = el("div", "reprise-score-bar");
    bar.style.width = `${Math.round(100 * lengths[i])}%`;
    return el("tr", rank === 0 ? "reprise-winner" : "", [
      el("td", "", String(rank + 1)),
      el("td", "", `#${i}`),
      el("td", "", number(scores[i])),
      el("td", "reprise-wide", [
        el("div", "reprise-track", bar),
        critiques?.[i] ? el("div", "", critiques[i]) : null,
      ]),
    ]);
  });
  const head = el("tr", "", ["", "image", judge, ""].map((text) => el("th", "", text)));
  return el("table", "reprise-table", [el("thead", "", head), el("tbody", "", rows)]);
}

export function extend(node) {
  addView(node, KEY, {
    take: (_, reports) => ({ reports, shown: 0 }),
    height: ({ reports, shown }) =>
      Math.min(34 + (reports[shown].critiques ? 44 : 22) * reports[shown].scores.length, 200),
    draw(state, save) {
      const report = state?.reports?.[state.shown];
      if (!report) return [el("div", "reprise-hint", "Scores appear here after a run.")];
      return [
        pager(state.reports.length, state.shown, (shown) => save({ shown }), "prompt"),
        table(report),
      ];
    },
  });
}
