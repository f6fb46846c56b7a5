"""Accuracy and calibration of judges on labelled pictures and previews, by question and by denoising step.

Accuracy is the share of answers on the right side of 0.5. The calibration error is that of
`rewards.vlm.calibration`. Both have 95 % intervals, bootstrapped over prompts (`statistics`), with the same
resamples for all judges. The overall value is the unweighted mean over the questions that a judge answers.

The last row is a baseline that does not look at pictures: it always gives the more frequent answer of a step.
A search chooses among pictures of one prompt, where knowing which prompts are hard does not help. So there
is also the pair accuracy: of all pairs of a right and a wrong picture of one prompt, the share in which the
right one has the higher P(yes). This is the area under the ROC curve within prompts; 0.5 is chance. If the
data have critiques, those of the judges are compared with them (`critiques`).

A vision-language model is asked each question in that question's words. Of previews it is also asked whether
they match, as a baseline for PARM's potential. For any other reward its score, scaled to 0..1 by its range,
stands for P(yes) to `match` and `potential`; it does not answer `clarity`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..core.errors import BadInput
from ..core.interfaces import Critic, Reward
from ..core.scoring import image_scores, verdicts
from ..rewards.scales import to_unit_range
from ..rewards.vlm.calibration import BINS, bin_of, reliability
from ..rewards.vlm.judge import VLMJudge, vlm_pictures
from ..storage.cache import Cache
from ..storage.images import read_picture
from .critiques import critique_table
from .journal import Journal
from .statistics import Interval, format_interval, percentile_interval, prompt_weights

BATCH = 32  # pictures judged and written to the journal at once
QUESTIONS, CRITIQUE = ("match", "clarity", "potential"), "critique"
JudgeAnswer = float | str  # P(yes), or a critique


@dataclass(frozen=True)
class JudgeCase:
    """A question about a picture, with its right answer.

    `step` is the denoising step of a preview, or 0 for a finished picture. `reason` is the right answer to
    "critique", `right` that to the other questions.
    """

    question: str
    prompt: str
    picture: Path
    right: bool
    step: int = 0
    reason: str = ""


class Answerer(Protocol):
    """Answers cases: P(yes) of each, or its critique; None if this judge does not know the question.

    All cases of a call have the same question, and all are finished pictures or all previews.
    """

    def __call__(self, cases: Sequence[JudgeCase]) -> Sequence[JudgeAnswer] | None: ...


def make_answerer(judge: Reward) -> Answerer:
    """The function through which `judge` answers cases."""

    def answer(cases: Sequence[JudgeCase]) -> Sequence[JudgeAnswer] | None:
        import torch

        question, words = cases[0].question, [case.prompt for case in cases]
        pictures = [read_picture(case.picture) for case in cases]
        if isinstance(judge, VLMJudge):
            seen = [vlm_pictures(picture[None])[0] for picture in pictures]
            if question == CRITIQUE:
                return judge.critiques(seen, words) if judge.tuned.knows(CRITIQUE) else None
            return judge.ask(question, seen, words)
        if question == CRITIQUE:
            return (
                [
                    one.critique
                    for picture, word in zip(pictures, words, strict=True)
                    for one in verdicts(judge, picture[None], [word])
                ]
                if isinstance(judge, Critic)
                else None
            )
        if question == "clarity" or (question == "match" and cases[0].step):
            return None
        alike = len({picture.shape for picture in pictures}) == 1
        groups = [list(range(len(cases)))] if alike else [[i] for i in range(len(cases))]
        scores = [
            score
            for rows in groups
            for score in image_scores(
                judge, torch.stack([pictures[i] for i in rows]), [words[i] for i in rows]
            )
        ]
        return [min(1.0, max(0.0, to_unit_range(judge.spec, score))) for score in scores]

    return answer


def evaluate_judges(
    judges: Mapping[str, Callable[[], Answerer]],
    cases: Sequence[JudgeCase],
    *,
    fingerprints: Mapping[str, str] | None = None,
    journal: Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The result (design.md 5) without versions, which the caller adds.

    `judges` makes each judge by its name, one after the other. Answers are written to the file `journal`;
    answers of an earlier call are used if the judge has the same entry in `fingerprints`. `progress(stage,
    done, total)` is called after each batch. Raises BadInput for no cases, and RewardFailed.
    """
    if not any(case.question in QUESTIONS for case in cases):
        raise BadInput("there is nothing to evaluate: expected questions of yes or no, got none")
    questions = [question for question in QUESTIONS if any(case.question == question for case in cases)]
    wrong = [case for case in cases if case.question == CRITIQUE]
    early = [replace(case, question="match") for case in cases if case.question == "potential"]
    file = Journal(journal)
    prompts = list(dict.fromkeys(case.prompt for case in cases))
    shares = prompt_weights(len(prompts), seed)
    rows, by_step, errors, pair_rows, curves, critiques = [], [], [], [], {}, {}
    steps = sorted({case.step for case in cases} - {0})
    for name, make in judges.items():
        answers = _answers(name, make, [*cases, *early], file, (fingerprints or {}).get(name, ""), progress)
        tasks, draws, means, ece = {}, [], [], {}
        for question in questions:
            known = [
                (case, p)
                for case, p in answers
                if case.question == question and p is not None and not isinstance(p, str)
            ]
            asked = [(case, p) for case, p in known if question != "match" or not case.step]
            if not asked:
                continue
            mean, drawn = _accuracy(asked, prompts, shares)
            tasks[question] = percentile_interval(mean, drawn)
            draws.append(drawn)
            means.append(mean)
            error = _calibration(asked, prompts, shares)
            ece[question], curve_name = error, f"{name}, {question}"
            errors.append([curve_name, len(asked), format_interval(error)])
            curves[curve_name] = reliability([p for _, p in asked], [case.right for case, _ in asked])
            if question != "clarity":
                pair_rows.append([curve_name, *_pair_accuracy(known, [0, *steps], prompts, shares)])
            at = [[pair for pair in known if pair[0].step == step] for step in steps]
            if any(at):
                by_step.append([curve_name, *(_cell(row, prompts, shares) for row in at)])
        if spoken := [(case.prompt, one, case.reason) for case, one in answers if isinstance(one, str)]:
            critiques[name] = spoken
        cost = {f"calibration error, {question}": error[0] for question, error in ece.items()}
        overall = percentile_interval(float(np.mean(means)), np.nanmean(draws, 0))
        rows.append(
            {"name": name, "overall": overall, "tasks": tasks, "cost": cost, "calibration_error": ece}
        )
    blind, blind_steps = _majority_row(cases, questions, steps, prompts, shares)
    rows.append(blind)
    by_step += blind_steps
    tables = [
        {
            "title": f"calibration error, {BINS} bins of equal width",
            "columns": ["judge, question", "answers", "error [95 %]"],
            "rows": errors,
        }
    ]
    tables.append(
        {
            "title": "pairs of one prompt told apart, a right and a wrong one",
            "columns": ["judge, question", "finished", *(f"step {step}" for step in steps)],
            "rows": pair_rows,
        }
    )
    if steps:
        tables.insert(
            0,
            {
                "title": "accuracy by denoising step",
                "columns": ["judge, question", *(f"step {step}" for step in steps)],
                "rows": by_step,
            },
        )
    if wrong:
        tables.append(critique_table(critiques, [(case.prompt, case.reason) for case in wrong], seed))
    settings = {"questions": questions, "answers": len(cases), "prompts": len(prompts), "seed": seed}
    return {"name": "judges", "rows": rows, "tables": tables, "reliability": curves, "settings": settings}


def _answers(
    name: str,
    make: Callable[[], Answerer],
    cases: Sequence[JudgeCase],
    file: Journal,
    fingerprint: str,
    progress: Callable[[str, int, int], None] | None,
) -> list[tuple[JudgeCase, JudgeAnswer | None]]:
    """Each case with its answer, from the journal or from the judge."""
    known = {
        row["key"]: row["answer"]
        for row in file.rows
        if row["judge"] == name and row["mark"] == fingerprint and "answer" in row
    }
    keys = [Cache.key("case", case.question, case.prompt, str(case.picture), case.step) for case in cases]
    alike: dict[tuple[str, bool], list[int]] = defaultdict(list)  # cases that one call may ask
    for i, case in enumerate(cases):
        if keys[i] not in known:
            alike[case.question, case.step > 0].append(i)
    ask, todo, done = make() if alike else None, sum(map(len, alike.values())), 0
    for mine in alike.values():
        for start in range(0, len(mine), BATCH):
            part = mine[start : start + BATCH]
            assert ask is not None
            found = ask([cases[i] for i in part]) or [None] * len(part)
            fresh = [
                {"judge": name, "mark": fingerprint, "key": keys[i], "answer": one}
                for i, one in zip(part, found, strict=True)
            ]
            file.add(fresh)
            known |= {row["key"]: row["answer"] for row in fresh}
            done += len(part)
            if progress:
                progress(name, done, todo)
    return [(case, known[key]) for case, key in zip(cases, keys, strict=True)]


MAJORITY = "always the commoner answer"
AnsweredCases = Sequence[tuple[JudgeCase, float]]


def _majority_row(
    cases: Sequence[JudgeCase],
    questions: Sequence[str],
    steps: Sequence[int],
    prompts: Sequence[str],
    shares: np.ndarray,
) -> tuple[dict[str, Any], list[list[str | None]]]:
    """The baseline that always gives the more frequent answer: its row, and its accuracies by step."""
    tasks, draws, means, by_step = {}, [], [], []
    for question in questions:
        groups = [
            [case for case in cases if (case.question, case.step) == (question, step)] for step in (0, *steps)
        ]
        constant = [
            [(case, float(2 * sum(one.right for one in group) >= len(group))) for case in group]
            for group in groups
        ]
        mean, drawn = _accuracy([pair for row in constant for pair in row], prompts, shares)
        tasks[question] = percentile_interval(mean, drawn)
        draws.append(drawn)
        means.append(mean)
        if question != "match":
            cells = [_cell(row, prompts, shares) for row in constant[1:]]
            by_step.append([f"{MAJORITY}, {question}", *cells])
    overall = percentile_interval(float(np.mean(means)), np.nanmean(draws, 0))
    row = {"name": MAJORITY, "overall": overall, "tasks": tasks, "cost": {}, "calibration_error": {}}
    return row, by_step


def _accuracy(asked: AnsweredCases, prompts: Sequence[str], shares: np.ndarray) -> tuple[float, np.ndarray]:
    """(share of right answers, that share in each resample; NaN for a resample without these prompts)."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 2))
    for case, p in asked:
        sums[place[case.prompt]] += ((p >= 0.5) is case.right, 1)
    hits, counts = (shares @ sums).T
    with np.errstate(invalid="ignore"):
        return float(sums[:, 0].sum() / sums[:, 1].sum()), hits / counts


def _cell(asked: AnsweredCases, prompts: Sequence[str], shares: np.ndarray) -> str | None:
    return format_interval(percentile_interval(*_accuracy(asked, prompts, shares))) if asked else None


def _pair_accuracy(
    asked: AnsweredCases, steps: Sequence[int], prompts: Sequence[str], shares: np.ndarray
) -> list[str | None]:
    """At each step, the share of pairs of a right and a wrong picture of one prompt in which the right one
    has the higher P(yes), as text; a tie counts half. None without pairs."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    found: list[str | None] = []
    for step in steps:
        sides: dict[str, tuple[list[float], list[float]]] = {}
        for case, p in asked:
            if case.step == step:
                sides.setdefault(case.prompt, ([], []))[case.right].append(p)
        sums = np.zeros((len(prompts), 2))
        for prompt, (wrong, right) in sides.items():
            if wrong and right:
                off = np.subtract.outer(right, wrong)
                sums[place[prompt]] = (off > 0).sum() + 0.5 * (off == 0).sum(), off.size
        ordered, pairs = (shares @ sums).T
        with np.errstate(invalid="ignore"):
            mean = sums[:, 0].sum() / sums[:, 1].sum()
            interval = percentile_interval(float(mean), ordered / pairs) if sums[:, 1].any() else None
        found.append(format_interval(interval) if interval else None)
    return found


def _calibration(asked: AnsweredCases, prompts: Sequence[str], shares: np.ndarray) -> Interval:
    """The calibration error [mean, low, high]."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), BINS, 2))  # for each prompt and bin: P(yes) - label, answers
    for case, p in asked:
        sums[place[case.prompt], bin_of(p)] += (p - case.right, 1)
    flat = sums.reshape(len(prompts), -1)

    def error(drawn: np.ndarray) -> np.ndarray:  # (N, BINS * 2)
        off, counts = drawn.reshape(len(drawn), BINS, 2).transpose(2, 0, 1)
        with np.errstate(invalid="ignore"):
            return np.abs(off).sum(1) / counts.sum(1)

    return percentile_interval(float(error(flat.sum(0, keepdims=True))[0]), error(shares @ flat))
