"""Makes what `sft` learns from: rewrites of users' prompts by any chat model, as far as they can be used.

Source: RePrompt (arXiv 2505.17540), first stage, whose 8,000 examples are GPT-4's. Departs from it: an answer
that the parser of inference cannot read never becomes an example. On request each prompt has only the rewrite
whose pictures have the highest reward, and only if it is not below that of the prompt as typed.

Every answer is stored in a folder beside the data (`answers`). The data is made of them at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ...core.errors import AnswerRefused, BadInput, RepriseError, RewardFailed
from ...core.interfaces import TextReward
from ...core.scoring import text_scores
from ...core.types import Job, Rewrite
from ...rewards.scales import to_unit_range
from ...rewriters.rows import RewriteRow, RowRewriter
from ..rollouts.prompts import TrainingPrompt
from .answers import AnswerFolder, AnswerLine
from .data import RewriteExample

if TYPE_CHECKING:
    from ..rollouts.scoring import PictureScorer, PictureScores

AT_ONCE = 512  # rows given to a rewriter in one call
IN_A_ROW = 8  # prompts refused, or not scored, after which the fault is not the prompts'
HOPELESS = 32  # answers, one of which must have been usable
Progress = Callable[[int, int], None]


class ExampleMaker:
    """Requests `variants` rewrites of each prompt, and up to `retries` more where some cannot be used.

    A rewrite must have the full score of the text rewards `filters`. What is requested depends on the answers
    alone, so that a stopped call ends with the same data as one that was not stopped.
    """

    def __init__(
        self,
        prompts: Sequence[TrainingPrompt],
        answers: AnswerFolder,
        *,
        variants: int = 1,
        retries: int = 2,
        filters: Mapping[str, TextReward] | None = None,
    ):
        self.prompts, self.answers = list(prompts), answers
        self.variants, self.retries, self.filters = variants, retries, dict(filters or {})
        # Refused since the last good answer: by fault of the prompts, or because the server is down?
        self.doubtful: dict[tuple[str, int], AnswerLine] = {}

    def missing(self) -> list[RewriteRow]:
        """What is still to be requested."""
        return [
            RewriteRow(one.prompt, variant)
            for one in self.prompts
            for variant in range(self._wanted(one.prompt))
            if variant not in self.answers.by_prompt.get(one.prompt, {})
            and (one.prompt, variant) not in self.doubtful
        ]

    def write(self, rewriter: RowRewriter, progress: Progress = lambda done, rows: None) -> None:
        """Request all that is missing; each answer is on disk as soon as it comes.

        Raises EndpointError, also where a server refuses one prompt after the other, and RepriseError where
        no answer can be used.
        """
        self.answers.check_rewriter(rewriter.fingerprint)
        done = 0
        while todo := self.missing():
            rows, whole = todo[:AT_ONCE], done + len(todo)

            def take(number: int, answer: Rewrite | AnswerRefused, rows=rows, whole=whole) -> None:
                nonlocal done
                self._take(rows[number], answer)
                done += 1
                progress(done, whole)

            rewriter.rewrite_rows(rows, self.answers.info.seed, take)

    def examples(self) -> dict[str, list[RewriteExample]]:
        """The usable ones by prompt: different ones, in the order of their variants."""
        return {
            one.prompt: list(
                dict.fromkeys(
                    answer.example
                    for answer in self._of(one.prompt)
                    if isinstance(answer.example, RewriteExample) and self._fault(answer) is None
                )
            )
            for one in self.prompts
        }

    def counts(self) -> dict[str, Any]:
        """How many answers there are, and why some are unusable."""
        faults = [self._fault(answer) for one in self.prompts for answer in self._of(one.prompt)]
        unusable = Counter(fault for fault in faults if fault is not None)
        left = len(faults) - sum(unusable.values())
        return {
            "prompts": len(self.prompts),
            "answers": len(faults),
            "unusable": dict(unusable.most_common()),
            "duplicates": left - sum(map(len, self.examples().values())),
        }

    def _wanted(self, prompt: str) -> int:
        """How many variants of a prompt are wanted: one more for each unusable one, up to the retries."""
        answers, wanted = self.answers.by_prompt.get(prompt, {}), self.variants
        while True:
            bad = [a for a in answers.values() if a.variant < wanted and not a.refused and self._fault(a)]
            more = self.variants + min(len(bad), self.retries)
            if more == wanted:
                return wanted
            wanted = more

    def _of(self, prompt: str) -> list[AnswerLine]:
        """The answers to a prompt that count, in the order of their variants."""
        doubtful = {a.variant: a for (other, _), a in self.doubtful.items() if other == prompt}
        answers = doubtful | self.answers.by_prompt.get(prompt, {})
        return [answers[variant] for variant in range(self._wanted(prompt)) if variant in answers]

    def _fault(self, answer: AnswerLine) -> str | None:
        """Why an answer is no example of this data."""
        if isinstance(answer.example, str):
            return answer.example
        rewrite = Rewrite(answer.reason, answer.rewrite, self.answers.info.rewriter)
        for name, reward in self.filters.items():
            if text_scores(reward, [rewrite], [answer.prompt]) != [reward.spec.high]:
                return f"the answer's {name} is not right"
        return None

    def _take(self, row: RewriteRow, answer: Rewrite | AnswerRefused) -> None:
        taken = AnswerLine(prompt=row.prompt, variant=row.variant)
        if isinstance(answer, AnswerRefused):
            # Not on disk yet: if the server is at fault, they are requested again.
            refused = taken.model_copy(update={"why": str(answer), "refused": True})
            self.doubtful[row.prompt, row.variant] = refused
            if len({prompt for prompt, _ in self.doubtful}) >= IN_A_ROW:
                raise answer
            return
        for refused in self.doubtful.values():
            self.answers.add(refused)
        self.doubtful.clear()
        content = {"reason": answer.reason, "rewrite": answer.prompt}
        taken = taken.model_copy(update={"why": answer.fallback} if answer.fallback else content)
        self.answers.add(taken)
        if self.answers.count == HOPELESS and not any(
            isinstance(one.example, RewriteExample)
            for some in self.answers.by_prompt.values()
            for one in some.values()
        ):
            raise RepriseError(
                f"none of the first {HOPELESS} answers of {self.answers.info.rewriter} can "
                f"be used; the last: {taken.example}; take another model"
            )


def keep_best(
    prompts: Sequence[TrainingPrompt],
    examples: Mapping[str, list[RewriteExample]],
    scorer: PictureScorer,
    weights: Mapping[str, float],
    seeds: Sequence[int],
    at_once: int = 32,
    progress: Progress = lambda done, pictures: None,
) -> tuple[dict[str, list[RewriteExample]], list[dict[str, Any]]]:
    """For each prompt the example whose pictures score best, if they score no less than the prompt's own.

    All pictures of a prompt are drawn from the same seeds. A score is the mean over the seeds of the weighted
    mean of the rewards, each brought to 0..1 by its range. Returns the examples by prompt, and for each
    prompt a row with all scores. About `at_once` pictures are drawn, scored and stored before the next ones.
    Raises RewardFailed where a reward fails for one prompt after the other.
    """
    texts = {
        one: list(dict.fromkeys([one.prompt, *(e.answer.prompt for e in examples[one.prompt])]))
        for one in prompts
        if examples[one.prompt]
    }
    whole, done, in_a_row = sum(map(len, texts.values())) * len(seeds), 0, 0
    best: dict[str, list[RewriteExample]] = {one.prompt: [] for one in prompts}
    rows: list[dict[str, Any]] = []
    for part in _parts(texts, at_once // len(seeds)):
        views = [(Job(text, seed), one.judge_prompt) for one in part for text in texts[one] for seed in seeds]
        results = iter(scorer.score(*map(list, zip(*views, strict=True))))
        for one in part:
            seen = {text: [next(results) for _ in seeds] for text in texts[one]}
            scores = {
                text: sum(_mixed(view, scorer, weights) for view in views) / len(views)
                for text, views in seen.items()
                if not any(view.failed for view in views)
            }
            faults = [fault for views in seen.values() for view in views for fault in view.failed.items()]
            in_a_row = 0 if scores else in_a_row + 1
            if in_a_row == IN_A_ROW:
                name, why = faults[-1]
                raise RewardFailed(name, f"it scored no picture of {IN_A_ROW} prompts; the last: {why}")
            able = [example for example in examples[one.prompt] if example.answer.prompt in scores]
            if one.prompt in scores and able:
                first = max(able, key=lambda example: scores[example.answer.prompt])
                if scores[first.answer.prompt] >= scores[one.prompt]:
                    best[one.prompt] = [first]
            rows.append(
                {
                    "prompt": one.prompt,
                    "scores": scores,
                    "failed": dict(faults),
                    "best": next((example.answer.prompt for example in best[one.prompt]), None),
                }
            )
        done += len(views)
        progress(done, whole)
    return best, rows


def held_out(prompts: Sequence[TrainingPrompt], share: float, seed: int) -> set[str]:
    """The prompts for evaluation: about `share` of them, chosen by a number made of what the judge reads.

    So other prompts do not move a prompt to the other side, and paraphrases of one prompt are on the same
    side. There is at least one on each side. Raises BadInput for prompts that mean the same.
    """
    places = {
        one.prompt: int(sha256(json.dumps([seed, one.judge_prompt]).encode()).hexdigest()[:16], 16) / 2**64
        for one in prompts
    }
    order = sorted(set(places.values()))
    if len(order) < 2:
        raise BadInput("--eval-share needs examples of two prompts at least; give more prompts")
    edge = min(max(share, order[1]), order[-1])
    return {prompt for prompt, place in places.items() if place < edge}


def _mixed(view: PictureScores, scorer: PictureScorer, weights: Mapping[str, float]) -> float:
    """A picture's rewards on one scale, averaged by weight."""
    values = [
        weight * to_unit_range(scorer.rewards[name].spec, view.scores[name])
        for name, weight in weights.items()
    ]
    return sum(values) / sum(weights.values())


def _parts(texts: Mapping[TrainingPrompt, Sequence[str]], size: int) -> Iterator[list[TrainingPrompt]]:
    """Prompts whose texts are `size` or a few more."""
    part: list[TrainingPrompt] = []
    for one in texts:
        part.append(one)
        if sum(len(texts[other]) for other in part) >= size:
            yield part
            part = []
    if part:
        yield part
