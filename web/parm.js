// PARM Best-of-N: seeds, scores, pruned candidates, what pruning saved, and a button for the winner's seed.

import { label } from "./labels.js";
import {
  addView, bar, button, describeJudge, el, number, pager, recordChange, relativeScores, setWidget,
} from "./view.js";

export const KEY = "reprise_parm";

/** Finished candidates, best first, then the pruned ones, latest first. */
export function ranked({ candidates, higher_is_better: higher }) {
  const finished = candidates.filter((c) => c.score !== null);
  const sign = higher === false ? -1 : 1;
  finished.sort((a, b) => sign * (b.score - a.score) || a.index - b.index);
  const stopped = candidates.filter((c) => c.score === null);
  stopped.sort((a, b) => (b.pruned_at ?? 0) - (a.pruned_at ?? 0) || a.index - b.index);
  return [...finished, ...stopped];
}

function table(report) {
  const order = ranked(report);
  const lengths = relativeScores(report, order.map((c) => c.score));
  const rows = order.map((c, i) => {
    const winner = c.index === report.best;
    const row = el("tr", c.score === null ? "reprise-stopped" : winner ? "reprise-winner" : "", [
      el("td", "", winner ? "★" : ""),
      el("td", "", String(c.seed)),
      el("td", "", number(c.score)),
      el("td", "reprise-wide",
         c.score === null ? label("stopped", { step: c.pruned_at }) : bar(lengths[i])),
    ]);
    const scores = c.preview_scores ?? {};
    const steps = new Set([...Object.keys(scores), ...Object.keys(c.preview_clarity ?? {})].map(Number));
    row.title = [...steps].sort((a, b) => a - b).map((step) => (
      step in scores ? label("preview", { step, score: number(scores[step]) }) : label("unclear", { step })
    )).join("\n");
    return row;
  });
  const head = el("tr", "", ["", label("seed"), report.judge, ""].map((text) => el("th", "", text)));
  head.title = describeJudge(report);
  return el("table", "reprise-table", [el("thead", "", head), el("tbody", "", rows)]);
}

function savings({ denoiser_rows: rows, denoiser_rows_full: full }) {
  const percent = full ? Math.round(100 * (1 - rows / full)) : 0;
  const text = el("span", "reprise-state", label("saved", { percent }));
  text.title = label("savedTitle", { rows, full });
  return text;
}

/** [node, widget name] of the seed: this node's or that of the linked noise node; null if it is elsewhere. */
function seedWidget(node) {
  const linked = (name) => node.inputs?.find((input) => input.name === name && input.link != null);
  if (node.widgets?.some((widget) => widget.name === "seed")) return linked("seed") ? null : [node, "seed"];
  const noise = node.inputs?.findIndex((input) => input.name === "noise") ?? -1;
  const origin = noise < 0 ? null : node.getInputNode?.(noise);
  for (const name of ["noise_seed", "seed"]) {
    if (origin?.widgets?.some((widget) => widget.name === name)) return [origin, name];
  }
  return null;
}

function fixSeed(node, seed) {
  const target = seedWidget(node);
  if (!target) return;
  setWidget(...target, seed);
  setWidget(target[0], "control_after_generate", "fixed");
  recordChange();
}

export function extend(node) {
  addView(node, KEY, {
    update: (_, reports) => ({ reports, shown: 0 }),
    height: ({ reports, shown }) => Math.min(60 + 19 * reports[shown].candidates.length, 232),
    draw(state, save) {
      const report = state?.reports?.[state.shown];
      if (!report) return [el("div", "reprise-hint", label("parmHint"))];
      return [
        el("div", "reprise-bar", [
          button(label("useSeed"), label("useSeedTitle", { seed: report.seed }),
                 () => fixSeed(node, report.seed)),
          savings(report.cost),
          pager(state.reports.length, state.shown, (shown) => save({ shown })),
        ]),
        table(report),
      ];
    },
  });
}
