// Reflection Loop: the rounds with their pictures, scores, prompts and critiques.

import { api } from "../../scripts/api.js";
import { label } from "./labels.js";
import { addView, bar, describeJudge, el, number, pager, relativeScores } from "./view.js";

export const KEY = "reprise_reflection";

/** The round's picture; removed if the server has deleted its temporary files. */
function thumbnail({ picture }) {
  if (!picture) return null;
  const image = el("img", "reprise-thumbnail");
  image.alt = "";
  image.addEventListener("error", () => image.remove());
  image.src = api.apiURL(`/view?${new URLSearchParams(picture)}`);
  return image;
}

function rounds(report) {
  const lengths = relativeScores(report, report.rounds.map((round) => round.score));
  return report.rounds.map((round, i) => {
    const best = i === report.best;
    const head = el("div", "reprise-round-head", [
      el("span", "", label("round", round)),
      el("span", "", number(round.score)),
      bar(lengths[i]),
      best ? el("span", "reprise-best", `★ ${label("best")}`) : null,
    ]);
    head.title = `${describeJudge(report)}\n${label("seed")}: ${round.seed}`;
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
 * The loop reports all its prompts: without rounds when it starts, complete when it comes from the cache. Each
 * round then reports its own prompt only (`part`). The rounds of an earlier run stay until the first new one.
 */
function update(state, reports) {
  const old = state?.reports ?? [], [first] = reports;
  const at = old.findIndex((one) => one.id === first.id);
  if (first.part && at >= 0) return { reports: old.with(at, first), shown: at };
  const earlier = (id) => old.find((one) => one.id === id && one.rounds.length);
  return { reports: reports.map((one) => (one.rounds.length ? one : earlier(one.id) ?? one)), shown: 0 };
}

export function extend(node) {
  addView(node, KEY, {
    update,
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
