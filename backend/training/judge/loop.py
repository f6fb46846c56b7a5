"""The loop of `judge`: questions in batches, evaluations on held-out prompts, calibrations, the folder."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError
from ...rewards.vlm.calibration import IDENTITY, Calibration, calibration_error, fit_calibration, reliability
from ...rewards.vlm.judge import CRITIQUE_TOKENS, SETTINGS, find_folder, vlm_pictures
from ...rewards.vlm.local import LocalVLM
from ...storage.files import read_lines
from ...storage.images import read_picture
from ..common.data import batches_of_step, check_same_data, lines_digest, pictures_digest
from ..common.lora import merged, training_dtype
from ..common.step_loop import Figures, StepLoop
from ..common.steps import autocast
from .batch import JudgeQuestion, encode, losses
from .config import JudgeConfig
from .data import (
    YES_OR_NO,
    JudgeExample,
    check_teaches,
    evenly_chosen,
    of_split,
    present,
    prompt_mark,
    read_examples,
)

if TYPE_CHECKING:
    from torch import Tensor


SHOWN = 4  # critiques of an evaluation in the report
VISION_MODULES = re.compile(r"(?:.*\.)?(?:vision|visual)\w*")  # names of vision towers in transformers


class JudgeLoop(StepLoop):
    """One run."""

    config: JudgeConfig
    usage = "as models/reprise/judges/NAME nodes and --judge vlm:NAME know it"

    def load(self) -> None:
        config = self.config
        examples = present(read_examples(config.data), self.log)
        self.items = of_split(examples, "train", config.questions)
        check_teaches(self.items)
        self.held_out = evenly_chosen(of_split(examples, "test", config.questions), config.eval_most)
        yes_or_no = [question for question in config.questions if question in YES_OR_NO]
        self.fitted_on = evenly_chosen(of_split(examples, "calibration", yes_or_no), config.eval_most)
        device = str(self.device)
        self.vlm = LocalVLM(
            find_folder(config.model),
            device=device,
            dtype=training_dtype(config.dtype, device == "cuda", config.lora),
            batch_size=config.batch_size,
        )
        self._freeze()

    @property
    def steps(self) -> int:
        config = self.config
        each = config.batch_size * config.accumulation
        return config.max_steps or math.ceil((config.epochs or 1) * len(self.items) / each)

    def _freeze(self) -> None:
        """Freeze all but `weights`, and set these. Raises CheckpointError."""
        config, model = self.config, self.vlm.model
        towers = [name for name, _ in model.named_modules() if VISION_MODULES.fullmatch(name)]
        if config.vision == "frozen" and not towers:
            raise CheckpointError(
                f"{config.model} has no part whose name says that it is the vision tower; set vision=train"
            )
        self.adapted = None
        if config.lora is not None:
            from peft import get_peft_model

            settings = config.lora.adapter()
            if config.vision == "frozen":
                settings.exclude_modules = "|".join(f"{re.escape(name)}(?:\\..*)?" for name in towers)
            self.adapted = get_peft_model(model, settings)  # puts layers into `model` itself
        else:
            model.requires_grad_(True)
            if config.vision == "frozen":
                for name in towers:
                    model.get_submodule(name).requires_grad_(False)
        self.weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def prepare(self) -> None:
        examples = (*self.items, *self.fitted_on, *self.held_out)
        lines = [one.line.model_dump_json() for one in examples]
        now = {
            "examples": len(lines),
            "sha256": lines_digest(lines),
            "pictures": pictures_digest(one.picture for one in examples),
        }
        check_same_data(self.folder, self.config.data, now, self.checkpoint is not None)
        if not self.fitted_on:
            self.log(
                "no prompts of the split calibration: P(yes) stays as the model gives it, which has "
                "learned from as many yes as no"
            )

    def summary(self) -> str:
        counts = Counter(one.line.question for one in self.items)
        listed = ", ".join(f"{count} of {question}" for question, count in counts.items())
        return f"{listed} to train on, {len(self.held_out)} held out"

    # A step

    def learn(self, step: int) -> Figures:
        by_question: dict[str, list[float]] = defaultdict(list)
        self.vlm.model.train()
        figures = self.descend(step, self._losses(step, by_question))
        self.vlm.model.eval()
        means = {f"loss/{name}": sum(values) / len(values) for name, values in sorted(by_question.items())}
        return {"of": self.steps, **figures, **means}

    def _losses(self, step: int, by_question: dict[str, list[float]]) -> Iterator[Tensor]:
        """The losses of a step's batches; those of single examples go into `by_question`."""
        config = self.config
        count = config.batch_size * config.accumulation
        for part in batches_of_step(step, self.items, config.batch_size, config.accumulation, config.seed):
            with autocast(self.device):
                found = losses(self.vlm, encode(self.vlm, [self._question(one) for one in part]))
                loss = found.sum() / count
            yield loss
            for one, value in zip(part, found.tolist(), strict=True):
                by_question[one.line.question].append(value)

    def _question(self, one: JudgeExample) -> JudgeQuestion:
        return JudgeQuestion(one.question, vlm_pictures(read_picture(one.picture)[None])[0], one.answer)

    # An evaluation

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        if not self.held_out:
            return None
        fitted = self._calibrations() if step == self.steps else {}
        figures, by_step, curves = {}, {}, {}
        for question in YES_OR_NO:
            some = [one for one in self.held_out if one.line.question == question]
            if not some:
                continue
            raw, right = self._likely(some), [bool(one.line.label) for one in some]
            likely = list(map(fitted.get(question, IDENTITY), raw))
            hits = [(p >= 0.5) is yes for p, yes in zip(likely, right, strict=True)]
            figures[f"{question}/accuracy"] = sum(hits) / len(hits)
            yes = sum(right) / len(right)
            figures[f"{question}/accuracy by always the commoner answer"] = max(yes, 1 - yes)
            figures[f"{question}/calibration error"] = calibration_error(likely, right)
            if fitted:
                figures[f"{question}/calibration error, uncalibrated"] = calibration_error(raw, right)
            steps: dict[int, list[bool]] = defaultdict(list)
            for one, hit in zip(some, hits, strict=True):
                steps[one.line.step or 0].append(hit)
            by_step[question] = {at: [sum(row) / len(row), len(row)] for at, row in sorted(steps.items())}
            curves[question] = reliability(likely, right)
        critiques = [one for one in self.held_out if one.line.question == "critique"]
        if critiques:
            figures["critique/loss"] = self._critique_loss(critiques)
        more = {
            "of": self.steps,
            "by_step": by_step,
            "reliability": curves,
            "calibration": _plain(fitted),
            "samples": self._samples(critiques[:SHOWN]),
        }
        return figures, more

    def _likely(self, examples: Sequence[JudgeExample]) -> list[float]:
        """P(yes), as the judge will give it uncalibrated. It need not answer with yes or no yet."""
        questions = [self._question(one) for one in examples]
        answers = self.vlm.answer_probabilities(
            [one.picture for one in questions], [one.question for one in questions]
        )
        return [yes / (yes + no) if yes + no else 0.5 for yes, no in answers]

    def _calibrations(self) -> dict[str, Calibration]:
        found = {}
        for question in YES_OR_NO:
            some = [one for one in self.fitted_on if one.line.question == question]
            if some:
                right = [bool(one.line.label) for one in some]
                found[question] = fit_calibration(self._likely(some), right)
        return found

    def _critique_loss(self, examples: Sequence[JudgeExample]) -> float:
        """Mean loss of sentences."""
        import torch

        found: list[float] = []
        each = self.config.batch_size
        with torch.no_grad(), autocast(self.device):
            for start in range(0, len(examples), each):
                questions = [self._question(one) for one in examples[start : start + each]]
                found += losses(self.vlm, encode(self.vlm, questions)).tolist()
        return sum(found) / len(found)

    def _samples(self, examples: Sequence[JudgeExample]) -> list[dict[str, Any]]:
        """What the judge writes of pictures that are wrong, for the report."""
        if not examples:
            return []
        asks = [self._question(one) for one in examples]
        written = self.vlm.generate(
            [ask.question for ask in asks], [ask.picture for ask in asks], CRITIQUE_TOKENS
        )
        return [
            {
                "prompt": one.line.prompt,
                "rewrite": " ".join(words.text.split()),
                "scores": {},
                "reason": str(one.answer),
                "fallback": None,
                "picture": self.copy_for_report(one.picture),
            }
            for one, words in zip(examples, written, strict=True)
        ]

    def export(self, folder: Path) -> None:
        config = self.config
        evaluated = read_lines(self.folder / "evaluations.jsonl", needs={"step": int, "calibration": dict})
        learned = {one.line.question for one in self.items}
        settings = {
            "format": 1,
            "role": "judge",
            "trainer": "judge",
            "questions": [question for question in config.questions if question in learned],
            "calibration": evaluated[-1]["calibration"] if evaluated else _plain(self._calibrations()),
            # The judge must not be measured on these prompts.
            "prompts": sorted({prompt_mark(one.line.prompt) for one in (*self.items, *self.fitted_on)}),
        }
        if config.gradient_checkpointing:
            self.vlm.model.gradient_checkpointing_disable()
        model = merged(self.adapted or self.vlm.model, config.export_dtype)
        model.save_pretrained(folder)
        self.vlm.processor.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _plain(calibrations: Mapping[str, Calibration]) -> dict[str, dict[str, float]]:
    return {question: one._asdict() for question, one in calibrations.items()}
