"""Makes what `sft` learns from: any chat model's rewrites of users' prompts, as far as they can be used.

Source: RePrompt (arXiv 2505.17540), first stage, whose 8,000 examples are GPT-4's. Departs from it: what the
one parser cannot read never becomes an example; and, where wanted, each prompt keeps only the rewrite whose
pictures a reward likes best, if it likes them no less than those of the prompt as it was typed.

Beside the data lies a folder with every answer as it came (`answers.jsonl`), so that a call that was stopped
or failed goes on, and nothing is asked twice. The data is made of them at the end: whole, or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...core.config import validation_message
from ...core.errors import AnswerRefused, BadInput, RepriseError, RewardFailed
from ...core.interfaces import TextReward
from ...core.scoring import text_scores
from ...core.types import Job, Rewrite
from ...rewards.scales import to_unit_range
from ...rewriters.rows import RewriteRow, RowRewriter
from ...storage.files import append_line, write_whole
from ..rollouts.prompts import TrainingPrompt
from .data import RewriteExample

if TYPE_CHECKING:
    from ..rollouts.scoring import PictureScorer, PictureScores

AT_ONCE = 512  # rows given to a rewriter in one call
IN_A_ROW = 8  # prompts refused, or not judged, after which it is not the prompts' fault
HOPELESS = 32  # answers, one of which must have been usable
Progress = Callable[[int, int], None]


class AnswerLine(BaseModel):
    """A line of `answers.jsonl`: what came for one variant of a prompt. `why`: there is no rewrite in it, or
    the server `refused` to give one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    variant: int = Field(ge=0)
    reason: str = ""
    rewrite: str = ""
    why: str | None = None
    refused: bool = False

    @cached_property
    def read(self) -> RewriteExample | str:
        """The example that it makes, or why it makes none."""
        if self.why is not None:
            return self.why
        if not self.reason.strip():
            return "the answer has no <reason>"
        try:
            return RewriteExample(prompt=self.prompt, reason=self.reason, rewrite=self.rewrite)
        except ValidationError as error:
            return validation_message(error)


class AnswerFolderInfo(BaseModel):
    """`begun.json`: whose answers these are, and the SHA-256 of the files that were made of them."""

    model_config = ConfigDict(extra="forbid")

    rewriter: str
    fingerprint: str | None = None
    seed: int
    made: list[str] = []


class AnswerFolder:
    """The answers of one rewriter at one seed, in a folder that is made with the first of them."""

    def __init__(self, folder: Path, rewriter: str, seed: int):
        """Raises BadInput where the folder holds another rewriter's or seed's, or a damaged line."""
        self.folder, self.path = folder, folder / "answers.jsonl"
        self.begun = _read_begun(folder / "begun.json") or AnswerFolderInfo(rewriter=rewriter, seed=seed)
        for name, now in (("rewriter", rewriter), ("seed", seed)):
            then = getattr(self.begun, name)
            if then != now:
                raise BadInput(
                    f"{folder} was begun with --{name} {then}, not {now}; give that one, or another --out"
                )
        self.of: dict[str, dict[int, AnswerLine]] = {}  # prompt -> variant -> answer
        self.count = 0
        for answer in _read_answers(self.path):
            self._take(answer)

    def check_rewriter(self, fingerprint: str) -> None:
        """Raises BadInput where the rewriter is not the one that the answers are of."""
        if self.begun.fingerprint not in (None, fingerprint):
            raise BadInput(
                f"{self.begun.rewriter} has other weights or settings than {self.folder} was "
                "begun with; give another --out"
            )
        self.begun.fingerprint = fingerprint
        self._keep_begun()

    def check_place(self, path: Path) -> None:
        """Raises BadInput where `path` holds what was not made here, or was changed since."""
        if path.exists() and (path.is_dir() or _digest(path.read_bytes()) not in self.begun.made):
            raise BadInput(
                f"{path} was not made by this command, or was changed since; move it, or give another file"
            )

    def add(self, answer: AnswerLine) -> None:
        append_line(self.path, answer.model_dump_json(exclude_defaults=True))
        self._take(answer)

    def save(self, path: Path, examples: Iterable[RewriteExample]) -> None:
        """Write examples as `sft` reads them."""
        rows = (json.dumps(one.model_dump(exclude_none=True), ensure_ascii=False) for one in examples)
        data = "".join(row + "\n" for row in rows).encode()
        self.begun.made = sorted({*self.begun.made, _digest(data)})
        self._keep_begun()  # first, so that the file is known for ours whenever this is stopped
        write_whole(path, data)

    def _take(self, answer: AnswerLine) -> None:
        self.count += answer.variant not in self.of.setdefault(answer.prompt, {})
        self.of[answer.prompt].setdefault(answer.variant, answer)

    def _keep_begun(self) -> None:
        write_whole(self.folder / "begun.json", self.begun.model_dump_json(indent=1) + "\n")


class ExampleMaker:
    """Asks for `variants` rewrites of each prompt, and for up to `retries` more where some cannot be used.

    `filters` are text rewards of which a rewrite must have the full score. What is asked for depends on the
    answers alone, so that a stopped call ends with the same data as one that was not.
    """

    def __init__(
        self,
        asked: Sequence[TrainingPrompt],
        answers: AnswerFolder,
        *,
        variants: int = 1,
        retries: int = 2,
        filters: Mapping[str, TextReward] | None = None,
    ):
        self.asked, self.answers = list(asked), answers
        self.variants, self.retries, self.filters = variants, retries, dict(filters or {})
        # Refused since the last good answer: their fault, or that of a server that takes nothing any more?
        self.doubtful: dict[tuple[str, int], AnswerLine] = {}

    def missing(self) -> list[RewriteRow]:
        """What is still to be asked for."""
        return [
            RewriteRow(one.prompt, variant)
            for one in self.asked
            for variant in range(self._wanted(one.prompt))
            if variant not in self.answers.of.get(one.prompt, {})
            and (one.prompt, variant) not in self.doubtful
        ]

    def write(self, rewriter: RowRewriter, progress: Progress = lambda done, rows: None) -> None:
        """Ask for all that is missing; each answer is on disk as soon as it is there.

        Raises EndpointError, also where a server refuses one prompt after the other, and RepriseError where
        no answer at all can be used.
        """
        self.answers.check_rewriter(rewriter.fingerprint)
        done = 0
        while todo := self.missing():
            rows, whole = todo[:AT_ONCE], done + len(todo)

            def told(number: int, answer: Rewrite | AnswerRefused, rows=rows, whole=whole) -> None:
                nonlocal done
                self._take(rows[number], answer)
                done += 1
                progress(done, whole)

            rewriter.rewrite_rows(rows, self.answers.begun.seed, told)

    def examples(self) -> dict[str, list[RewriteExample]]:
        """What can be used, by prompt: no two alike, in the order of their variants."""
        return {
            one.prompt: list(
                dict.fromkeys(
                    answer.read
                    for answer in self._of(one.prompt)
                    if isinstance(answer.read, RewriteExample) and self._fault(answer) is None
                )
            )
            for one in self.asked
        }

    def counts(self) -> dict[str, Any]:
        """How many answers there are, and what became of them."""
        faults = [self._fault(answer) for one in self.asked for answer in self._of(one.prompt)]
        unusable = Counter(fault for fault in faults if fault is not None)
        left = len(faults) - sum(unusable.values())
        return {
            "prompts": len(self.asked),
            "answers": len(faults),
            "unusable": dict(unusable.most_common()),
            "duplicates": left - sum(map(len, self.examples().values())),
        }

    def _wanted(self, prompt: str) -> int:
        """How many variants of a prompt are wanted, by what came of the first ones."""
        answers, wanted = self.answers.of.get(prompt, {}), self.variants
        while True:
            bad = [a for a in answers.values() if a.variant < wanted and not a.refused and self._fault(a)]
            more = self.variants + min(len(bad), self.retries)
            if more == wanted:
                return wanted
            wanted = more

    def _of(self, prompt: str) -> list[AnswerLine]:
        """The answers to a prompt that count, in the order of their variants."""
        doubtful = {a.variant: a for (other, _), a in self.doubtful.items() if other == prompt}
        answers = doubtful | self.answers.of.get(prompt, {})
        return [answers[variant] for variant in range(self._wanted(prompt)) if variant in answers]

    def _fault(self, answer: AnswerLine) -> str | None:
        """Why an answer is no example of this data."""
        if isinstance(answer.read, str):
            return answer.read
        rewrite = Rewrite(answer.reason, answer.rewrite, self.answers.begun.rewriter)
        for name, reward in self.filters.items():
            if text_scores(reward, [rewrite], [answer.prompt]) != [reward.spec.high]:
                return f"the answer's {name} is not right"
        return None

    def _take(self, row: RewriteRow, answer: Rewrite | AnswerRefused) -> None:
        taken = AnswerLine(prompt=row.prompt, variant=row.variant)
        if isinstance(answer, AnswerRefused):
            # Not on disk yet: where the server is at fault, they are asked for again.
            refused = taken.model_copy(update={"why": str(answer), "refused": True})
            self.doubtful[row.prompt, row.variant] = refused
            if len({prompt for prompt, _ in self.doubtful}) >= IN_A_ROW:
                raise answer
            return
        for refused in self.doubtful.values():
            self.answers.add(refused)
        self.doubtful.clear()
        said = {"reason": answer.reason, "rewrite": answer.prompt}
        taken = taken.model_copy(update={"why": answer.fallback} if answer.fallback else said)
        self.answers.add(taken)
        if self.answers.count == HOPELESS and not any(
            isinstance(one.read, RewriteExample) for some in self.answers.of.values() for one in some.values()
        ):
            raise RepriseError(
                f"none of the first {HOPELESS} answers of {self.answers.begun.rewriter} can "
                f"be used; the last: {taken.read}; take another model"
            )


def keep_best(
    asked: Sequence[TrainingPrompt],
    examples: Mapping[str, list[RewriteExample]],
    scorer: PictureScorer,
    weights: Mapping[str, float],
    seeds: Sequence[int],
    at_once: int = 32,
    progress: Progress = lambda done, pictures: None,
) -> tuple[dict[str, list[RewriteExample]], list[dict[str, Any]]]:
    """Of each prompt the example whose pictures score best, where that is no less than the prompt's own do.

    All of a prompt are drawn from the same seeds; a score is the mean over these of the weighted mean of the
    rewards, each brought to 0..1 by its range. Returns the examples by prompt, and for each prompt a row of
    what scored what. About `at_once` pictures are drawn, judged and kept before the next ones.
    Raises RewardFailed where a reward fails for one prompt after the other.
    """
    texts = {
        one: list(dict.fromkeys([one.prompt, *(e.answer.prompt for e in examples[one.prompt])]))
        for one in asked
        if examples[one.prompt]
    }
    whole, done, in_a_row = sum(map(len, texts.values())) * len(seeds), 0, 0
    best: dict[str, list[RewriteExample]] = {one.prompt: [] for one in asked}
    rows: list[dict[str, Any]] = []
    for part in _parts(texts, at_once // len(seeds)):
        views = [(Job(text, seed), one.judge_prompt) for one in part for text in texts[one] for seed in seeds]
        judged = iter(scorer.score(*map(list, zip(*views, strict=True))))
        for one in part:
            seen = {text: [next(judged) for _ in seeds] for text in texts[one]}
            scores = {
                text: sum(_mixed(view, scorer, weights) for view in views) / len(views)
                for text, views in seen.items()
                if not any(view.failed for view in views)
            }
            faults = [fault for views in seen.values() for view in views for fault in view.failed.items()]
            in_a_row = 0 if scores else in_a_row + 1
            if in_a_row == IN_A_ROW:
                name, why = faults[-1]
                raise RewardFailed(name, f"it judged no picture of {IN_A_ROW} prompts; the last: {why}")
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


def held_out(asked: Sequence[TrainingPrompt], share: float, seed: int) -> set[str]:
    """The prompts set aside for evaluation: about `share` of them, by a number made of what each means.

    So a prompt stays on its side, whatever others there are, and paraphrases of one prompt are on the same
    side. There is one at least, and one at least is left. Raises BadInput for prompts that mean the same.
    """
    places = {
        one.prompt: int(_digest(json.dumps([seed, one.judge_prompt]).encode())[:16], 16) / 2**64
        for one in asked
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


def _read_begun(path: Path) -> AnswerFolderInfo | None:
    try:
        return AnswerFolderInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give another --out") from error
    except ValidationError as error:
        raise BadInput(f"{path}: {validation_message(error)}; give another --out") from error


def _read_answers(path: Path) -> Iterator[AnswerLine]:
    """The lines of the file; a last one that is half written is cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_whole(path, whole)
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            yield AnswerLine.model_validate_json(line)
        except ValidationError as error:
            raise BadInput(
                f"{path}, line {number}: {validation_message(error)}; delete this line, and what it held is "
                "asked for again"
            ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
