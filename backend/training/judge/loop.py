"""The loop of `judge`: questions in batches, evaluations on held-out prompts, calibrations, the folder.

A step's examples are a matter of (seed, place in the run), and so is what is random in it: a stopped run
knows where it was from the number of steps alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import CheckpointError
from ...core.seeds import seed_of
from ...reports.training import PICTURES, write_report
from ...rewards.vlm.calibration import PLAIN, Calibration, calibration_error, fit_calibration, reliability
from ...rewards.vlm.judge import REASON_TOKENS, SETTINGS, find_folder, shown
from ...rewards.vlm.local import LocalVLM
from ...storage.cache import Cache
from ...storage.files import read_lines
from ...storage.images import read_picture
from ..common import distributed
from ..common.lora import merged, training_dtype
from ..common.run_folder import append_lines, drop_later_lines, newest_checkpoint, step_of, write_folder
from ..common.steps import (
    apply_gradient,
    autocast,
    batches_of_step,
    check_loss,
    check_same_data,
    learning_rate_factor,
    load_checkpoint,
    pictures_digest,
    save_checkpoint,
    save_error,
    set_learning_rate,
)
from .batch import JudgeQuestion, encode, losses
from .data import (
    YES_OR_NO,
    JudgeExample,
    check_teaches,
    chosen,
    of_split,
    present,
    prompt_mark,
    read_examples,
)

if TYPE_CHECKING:
    from .config import JudgeConfig


LINES = ("metrics.jsonl", "evaluations.jsonl")
SHOWN = 4  # critiques of an evaluation in the report
VISION_MODULES = re.compile(
    r"(?:.*\.)?(?:vision|visual)\w*"
)  # what transformers' models call their vision towers


class JudgeLoop:
    """One run."""

    def __init__(self, config: JudgeConfig, run: Path, resume: bool, log: Callable[[str], None]):
        import torch
        from transformers import set_seed

        self.folder, self.log = run, log
        self.checkpoint = newest_checkpoint(run / "checkpoints") if resume else None
        for name in LINES:
            # From the start, the evaluation before the first step is made again, too.
            drop_later_lines(run / name, step_of(self.checkpoint) if self.checkpoint else -1)
        examples = present(read_examples(config.data), log)
        self.items = of_split(examples, "train", config.questions)
        check_teaches(self.items)
        self.aside = chosen(of_split(examples, "test", config.questions), config.eval_most)
        yes_or_no = [question for question in config.questions if question in YES_OR_NO]
        self.fitted_on = chosen(of_split(examples, "calibration", yes_or_no), config.eval_most)
        if config.max_steps is None:
            each = config.batch_size * config.accumulation
            steps = math.ceil((config.epochs or 1) * len(self.items) / each)
            config = config.model_copy(update={"max_steps": steps})
        self.config, self.steps = config, config.max_steps or 1
        gpu = distributed.use_gpu(config.device)
        self.device = torch.device("cuda" if gpu else "cpu")
        set_seed(config.seed)
        dtype = training_dtype(config.dtype, gpu, config.lora)
        self.vlm = LocalVLM(
            find_folder(config.model), device=str(self.device), dtype=dtype, batch_size=config.batch_size
        )
        self._prepare()
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), config.learning_rate, weight_decay=config.weight_decay
        )
        factor = learning_rate_factor(config, self.optimizer)  # type: ignore[arg-type]  # max_steps is set
        self.rate = lambda done: config.learning_rate * factor(done)

    def run(self) -> Path:
        from torch.utils.tensorboard import SummaryWriter

        self._check_begun()
        done = self._restore()
        going = f"going on from {self.checkpoint.name}" if self.checkpoint else "from the start"
        counts = Counter(one.line.question for one in self.items)
        told = ", ".join(f"{count} of {question}" for question, count in counts.items())
        self.log(f"{told} to train on, {len(self.aside)} held out; {going}")
        if not self.fitted_on:
            self.log(
                "no prompts of the split calibration: P(yes) stays as the model gives it, which has "
                "learned from as much yes as no"
            )
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=done + 1) as board:
            if done == 0:
                self._evaluate(0, board)
            for step in range(done + 1, self.steps + 1):
                row = self._step(step)
                append_lines(self.folder / LINES[0], [json.dumps(row)])
                self.log(f"step {step}/{self.steps} loss {row['loss']:.4f} {row['seconds']:.1f} s")
                for name in ("loss", "grad_norm", "learning_rate"):
                    board.add_scalar(name, row[name], step)
                last = step == self.steps
                if last or step % self.config.eval_every == 0:
                    self._evaluate(step, board)
                if last or step % self.config.save_every == 0:
                    save_checkpoint(
                        self.folder, step, {"weights": self.weights}, self.optimizer, list(self.weights)
                    )
                if last or step % 10 == 0:
                    write_report(self.folder, finished=last)
        final = self._export()
        self.log(f"saved {final}; as models/reprise/judges/NAME nodes and --judge vlm:NAME know it")
        return final

    def _prepare(self) -> None:
        """Set `weights`, which are trained, by their names. Raises CheckpointError."""
        config, model = self.config, self.vlm.model
        eyes = [name for name, _ in model.named_modules() if VISION_MODULES.fullmatch(name)]
        if config.vision == "frozen" and not eyes:
            raise CheckpointError(
                f"{config.model} has no part whose name says that it is the vision tower; set vision=train"
            )
        self.adapted = None
        if config.lora is not None:
            from peft import get_peft_model

            settings = config.lora.adapter()
            if config.vision == "frozen":
                settings.exclude_modules = "|".join(f"{re.escape(name)}(?:\\..*)?" for name in eyes)
            self.adapted = get_peft_model(model, settings)  # puts layers into `model` itself
        else:
            model.requires_grad_(True)
            if config.vision == "frozen":
                for name in eyes:
                    model.get_submodule(name).requires_grad_(False)
        self.weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    # A step

    def _step(self, step: int) -> dict[str, Any]:
        import torch

        config, start, loss_of_all = self.config, time.perf_counter(), 0.0
        rate = self.rate(step - 1)
        set_learning_rate(self.optimizer, rate)
        count = config.batch_size * config.accumulation
        torch.manual_seed(seed_of(config.seed, "step", step))
        self.vlm.model.train()
        parts: dict[str, list[float]] = defaultdict(list)
        for part in batches_of_step(step, self.items, config.batch_size, config.accumulation, config.seed):
            with autocast(self.device):
                found = losses(self.vlm, encode(self.vlm, [self._ask(one) for one in part]))
                loss = found.sum() / count
            check_loss(loss, step, self.folder)
            loss.backward()
            loss_of_all += loss.item()
            for one, value in zip(part, found.tolist(), strict=True):
                parts[f"loss/{one.line.question}"].append(value)
        norm = apply_gradient(self.weights, self.optimizer, config.max_grad_norm, step, self.folder)
        self.vlm.model.eval()
        means = {name: sum(values) / len(values) for name, values in sorted(parts.items())}
        return {
            "step": step,
            "of": self.steps,
            "loss": loss_of_all,
            **means,
            "grad_norm": norm,
            "learning_rate": rate,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _ask(self, one: JudgeExample) -> JudgeQuestion:
        return JudgeQuestion(one.asked, shown(read_picture(one.picture)[None])[0], one.answer)

    # An evaluation

    def _evaluate(self, step: int, board: Any) -> None:
        if not self.aside:
            return
        start = time.perf_counter()
        fitted = self._calibrations() if step == self.steps else {}
        figures, by_step, curves = {}, {}, {}
        for question in YES_OR_NO:
            some = [one for one in self.aside if one.line.question == question]
            if not some:
                continue
            raw, right = self._likely(some), [bool(one.line.label) for one in some]
            likely = list(map(fitted.get(question, PLAIN), raw))
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
        said = [one for one in self.aside if one.line.question == "critique"]
        if said:
            figures["critique/loss"] = self._surprise(said)
        row = {
            "step": step,
            "of": self.steps,
            **figures,
            "by_step": by_step,
            "reliability": curves,
            "calibration": _plain(fitted),
            "samples": self._samples(said[:SHOWN]),
            "seconds": round(time.perf_counter() - start, 2),
        }
        append_lines(self.folder / LINES[1], [json.dumps(row)])
        for name, value in figures.items():
            board.add_scalar(f"evaluation/{name}", value, step)
        self.log(f"evaluation at step {step}: " + " ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def _likely(self, examples: Sequence[JudgeExample]) -> list[float]:
        """P(yes), as the judge will give it uncalibrated. It need not answer with yes or no yet."""
        asks = [self._ask(one) for one in examples]
        said = self.vlm.answers([ask.picture for ask in asks], [ask.question for ask in asks])
        return [yes / (yes + no) if yes + no else 0.5 for yes, no in said]

    def _calibrations(self) -> dict[str, Calibration]:
        found = {}
        for question in YES_OR_NO:
            some = [one for one in self.fitted_on if one.line.question == question]
            if some:
                right = [bool(one.line.label) for one in some]
                found[question] = fit_calibration(self._likely(some), right)
        return found

    def _surprise(self, examples: Sequence[JudgeExample]) -> float:
        """Mean loss of sentences."""
        import torch

        found: list[float] = []
        each = self.config.batch_size
        with torch.no_grad(), autocast(self.device):
            for start in range(0, len(examples), each):
                asks = [self._ask(one) for one in examples[start : start + each]]
                found += losses(self.vlm, encode(self.vlm, asks)).tolist()
        return sum(found) / len(found)

    def _samples(self, examples: Sequence[JudgeExample]) -> list[dict[str, Any]]:
        """What the judge writes of pictures that are wrong, for the report."""
        asks = [self._ask(one) for one in examples]
        said = (
            self.vlm.write([ask.question for ask in asks], [ask.picture for ask in asks], REASON_TOKENS)
            if asks
            else []
        )
        return [
            {
                "prompt": one.line.prompt,
                "rewrite": " ".join(words.text.split()),
                "scores": {},
                "reason": str(one.answer),
                "fallback": None,
                "picture": self._keep(one.picture),
            }
            for one, words in zip(examples, said, strict=True)
        ]

    def _keep(self, picture: Path) -> str:
        """The name of a picture's copy for the report."""
        cache, key = Cache(self.folder / PICTURES), Cache.key("sample", str(picture))
        if cache.get_image(key) is None:
            cache.put_image(key, read_picture(picture))
        return key

    # What is kept

    def _check_begun(self) -> None:
        examples = (*self.items, *self.fitted_on, *self.aside)
        lines = [one.line.model_dump_json() for one in examples]
        now = {
            "examples": len(lines),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "pictures": pictures_digest(one.picture for one in examples),
        }
        check_same_data(self.folder, self.config.data, now, self.checkpoint is not None)

    def _restore(self) -> int:
        """Take the checkpoint's weights and optimiser; the steps behind it."""
        if self.checkpoint is not None:
            load_checkpoint(
                self.checkpoint,
                {"weights": self.weights},
                self.optimizer,
                list(self.weights),
                str(self.device),
            )
        return step_of(self.checkpoint)

    def _export(self) -> Path:
        """Write `final/`."""
        final, config = self.folder / "final", self.config
        evaluated = read_lines(self.folder / LINES[1])
        learned = {one.line.question for one in self.items}
        settings = {
            "format": 1,
            "role": "judge",
            "trainer": "judge",
            "questions": [question for question in config.questions if question in learned],
            "calibration": evaluated[-1]["calibration"] if evaluated else _plain(self._calibrations()),
            # For figures: of these prompts none can be taken.
            "prompts": sorted({prompt_mark(one.line.prompt) for one in (*self.items, *self.fitted_on)}),
        }
        if config.gradient_checkpointing:
            self.vlm.model.gradient_checkpointing_disable()
        model = merged(self.adapted or self.vlm.model, config.export_dtype)
        try:
            with write_folder(final) as folder:
                model.save_pretrained(folder)
                self.vlm.processor.save_pretrained(folder)
                text = json.dumps(settings, indent=1) + "\n"
                (folder / SETTINGS).write_text(text, encoding="utf-8")
        except Exception as error:
            raise save_error(final, self.folder, error) from error
        return final


def _plain(calibrations: Mapping[str, Calibration]) -> dict[str, dict[str, float]]:
    return {question: one._asdict() for question, one in calibrations.items()}
