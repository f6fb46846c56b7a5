// Reward Scorer: the images by rank, with a bar for each score and the judge's critiques.

import { label } from "./labels.js";
import { addView, bar, describeJudge, el, number, pager, relativeScores } from "./view.js";

export const KEY = "reprise_scores";

/** A row below a picture's, as wide as the table. */
function critique(text) {
  const cell = el("td", "reprise-wide reprise-warning", text);
  cell.colSpan = 4;
  return el("tr", "", cell);
}

function table(report) {
  const { judge, scores, ranking, critiques } = report;
  const lengths = relativeScores(report, scores);
  const rows = ranking.flatMap((i, rank) => [
    el("tr", rank === 0 ? "reprise-winner" : "", [
      el("td", "", String(rank + 1)),
      el("td", "", `#${i}`),
      el("td", "", number(scores[i])),
      el("td", "reprise-wide", bar(lengths[i])),
    ]),
    critiques?.[i] ? critique(critiques[i]) : null,
  ]);
  const head = el("tr", "", ["", label("image"), judge, ""].map((text) => el("th", "", text)));
  head.title = describeJudge(report);
  return el("table", "reprise-table", [el("thead", "", head), el("tbody", "", rows)]);
}

export function extend(node) {
  addView(node, KEY, {
    update: (_, reports) => ({ reports, shown: 0 }),
    height: ({ reports, shown }) =>
      Math.min(34 + (reports[shown].critiques ? 44 : 22) * reports[shown].scores.length, 260),
    draw(state, save) {
      const report = state?.reports?.[state.shown];
      if (!report) return [el("div", "reprise-hint", label("scorerHint"))];
      return [
        pager(state.reports.length, state.shown, (shown) => save({ shown })),
        table(report),
      ];
    },
  });
}
