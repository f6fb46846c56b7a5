"""How right judges are about pictures and previews, by question and by step, and how calibrated.

Accuracy is the share of answers on the right side of one half; the calibration error is `calibration`'s. Both
have 95 % intervals bootstrapped over prompts (`statistics`), all judges on the same resamples. The overall
value is the unweighted mean over the questions that a judge answers. A last row always gives the answer that
is commoner at the step: what is known without looking at pictures. And because a search chooses among
pictures of one prompt, where knowing which prompts fail is of no use, there is the share of pairs of one
prompt, a right and a wrong one, that are told apart (the area under the ROC curve within prompts; half: by
chance). Where critiques are among the data, what judges say is wrong with those pictures is compared, too
(`critiques`).

A VLM is asked each question in its own words, and of previews also whether they match: what PARM's potential
is there to know better. Of any other reward the score itself, brought to 0..1 by its
range, stands for P(yes) to `match` and to `potential`; it knows no clarity.
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

BATCH = 32  # pictures judged, and kept, before the next
QUESTIONS, CRITIQUE = ("match", "clarity", "potential"), "critique"
Answer = float | str  # P(yes), or a critique


@dataclass(frozen=True)
class JudgeCase:
    """A question about a picture; `step` is that of a preview, 0 of a finished picture. `reason` is the right
    answer to "critique"."""

    question: str
    prompt: str
    picture: Path
    right: bool
    step: int = 0
    reason: str = ""


class Answerer(Protocol):
    """P(yes) to each case, or what is wrong, all of one question and all finished or all previews; None where
    this judge does not know the question."""

    def __call__(self, cases: Sequence[JudgeCase]) -> Sequence[Answer] | None: ...


def make_answerer(judge: Reward) -> Answerer:
    """How a judge answers."""

    def ask(cases: Sequence[JudgeCase]) -> Sequence[Answer] | None:
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

    return ask


def evaluate_judges(
    judges: Mapping[str, Callable[[], Answerer]],
    cases: Sequence[JudgeCase],
    *,
    marks: Mapping[str, str] | None = None,
    kept: Path | None = None,
    seed: int = 0,
    tell: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The table as design.md 5's object; versions are added by the caller.

    `judges` are made one after the other. `marks` say what a name stands for, such as a folder's state: what
    `kept` holds of another state is asked again. Raises BadInput for no cases, RewardFailed.
    """
    if not any(case.question in QUESTIONS for case in cases):
        raise BadInput("there is nothing to evaluate: no questions of yes or no")
    questions = [question for question in QUESTIONS if any(case.question == question for case in cases)]
    wrong = [case for case in cases if case.question == CRITIQUE]
    early = [replace(case, question="match") for case in cases if case.question == "potential"]
    file = Journal(kept)
    prompts = list(dict.fromkeys(case.prompt for case in cases))
    shares = prompt_weights(len(prompts), seed)
    rows, by_step, errors, apart, curves, said = [], [], [], [], {}, {}
    steps = sorted({case.step for case in cases} - {0})
    for name, make in judges.items():
        answers = _answered(name, make, [*cases, *early], file, (marks or {}).get(name, ""), tell)
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
                apart.append([curve_name, *_told_apart(known, [0, *steps], prompts, shares)])
            at = [[pair for pair in known if pair[0].step == step] for step in steps]
            if any(at):
                by_step.append([curve_name, *(_cell(row, prompts, shares) for row in at)])
        if spoken := [(case.prompt, one, case.reason) for case, one in answers if isinstance(one, str)]:
            said[name] = spoken
        cost = {f"calibration error, {question}": error[0] for question, error in ece.items()}
        overall = percentile_interval(float(np.mean(means)), np.nanmean(draws, 0))
        rows.append(
            {"name": name, "overall": overall, "tasks": tasks, "cost": cost, "calibration_error": ece}
        )
    blind, blind_steps = _commoner(cases, questions, steps, prompts, shares)
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
            "rows": apart,
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
        tables.append(critique_table(said, [(case.prompt, case.reason) for case in wrong], seed))
    settings = {"questions": questions, "answers": len(cases), "prompts": len(prompts), "seed": seed}
    return {"name": "judges", "rows": rows, "tables": tables, "reliability": curves, "settings": settings}


def _answered(
    name: str,
    make: Callable[[], Answerer],
    cases: Sequence[JudgeCase],
    file: Journal,
    mark: str,
    tell: Callable[[str, int, int], None] | None,
) -> list[tuple[JudgeCase, Answer | None]]:
    """Each case with its answer, some asked by an earlier call."""
    known = {
        row["key"]: row["answer"]
        for row in file.rows
        if row["judge"] == name and row["mark"] == mark and "answer" in row
    }
    keys = [Cache.key("case", case.question, case.prompt, str(case.picture), case.step) for case in cases]
    alike: dict[tuple[str, bool], list[int]] = defaultdict(list)  # asked at once
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
                {"judge": name, "mark": mark, "key": keys[i], "answer": one}
                for i, one in zip(part, found, strict=True)
            ]
            file.add(fresh)
            known |= {row["key"]: row["answer"] for row in fresh}
            done += len(part)
            if tell:
                tell(name, done, todo)
    return [(case, known[key]) for case, key in zip(cases, keys, strict=True)]


COMMONER = "always the commoner answer"
Asked = Sequence[tuple[JudgeCase, float]]


def _commoner(
    cases: Sequence[JudgeCase],
    questions: Sequence[str],
    steps: Sequence[int],
    prompts: Sequence[str],
    shares: np.ndarray,
) -> tuple[dict[str, Any], list[list[str | None]]]:
    """Who does not look: its row of the table, and its accuracies by step."""
    tasks, draws, means, by_step = {}, [], [], []
    for question in questions:
        groups = [
            [case for case in cases if (case.question, case.step) == (question, step)] for step in (0, *steps)
        ]
        said = [
            [(case, float(2 * sum(one.right for one in group) >= len(group))) for case in group]
            for group in groups
        ]
        mean, drawn = _accuracy([pair for row in said for pair in row], prompts, shares)
        tasks[question] = percentile_interval(mean, drawn)
        draws.append(drawn)
        means.append(mean)
        if question != "match":
            cells = [_cell(row, prompts, shares) for row in said[1:]]
            by_step.append([f"{COMMONER}, {question}", *cells])
    overall = percentile_interval(float(np.mean(means)), np.nanmean(draws, 0))
    row = {"name": COMMONER, "overall": overall, "tasks": tasks, "cost": {}, "calibration_error": {}}
    return row, by_step


def _accuracy(asked: Asked, prompts: Sequence[str], shares: np.ndarray) -> tuple[float, np.ndarray]:
    """(share of right answers, the same in each resample; NaN where it drew none of these prompts)."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), 2))
    for case, p in asked:
        sums[place[case.prompt]] += ((p >= 0.5) is case.right, 1)
    hits, counts = (shares @ sums).T
    with np.errstate(invalid="ignore"):
        return float(sums[:, 0].sum() / sums[:, 1].sum()), hits / counts


def _cell(asked: Asked, prompts: Sequence[str], shares: np.ndarray) -> str | None:
    return format_interval(percentile_interval(*_accuracy(asked, prompts, shares))) if asked else None


def _told_apart(
    asked: Asked, steps: Sequence[int], prompts: Sequence[str], shares: np.ndarray
) -> list[str | None]:
    """At each step, of all pairs of a prompt's pictures of which one is right, those whose P(yes) says so; a
    tie is half. None where there is no pair."""
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
        told, pairs = (shares @ sums).T
        with np.errstate(invalid="ignore"):
            mean = sums[:, 0].sum() / sums[:, 1].sum()
            found.append(
                format_interval(percentile_interval(float(mean), told / pairs)) if sums[:, 1].any() else None
            )
    return found


def _calibration(asked: Asked, prompts: Sequence[str], shares: np.ndarray) -> Interval:
    """The calibration error [mean, low, high]."""
    place = {prompt: i for i, prompt in enumerate(prompts)}
    sums = np.zeros((len(prompts), BINS, 2))  # by prompt and bin: P(yes) less yes, answers
    for case, p in asked:
        sums[place[case.prompt], bin_of(p)] += (p - case.right, 1)
    flat = sums.reshape(len(prompts), -1)

    def error(drawn: np.ndarray) -> np.ndarray:  # (N, BINS * 2)
        off, counts = drawn.reshape(len(drawn), BINS, 2).transpose(2, 0, 1)
        with np.errstate(invalid="ignore"):
            return np.abs(off).sum(1) / counts.sum(1)

    return percentile_interval(float(error(flat.sum(0, keepdims=True))[0]), error(shares @ flat))
