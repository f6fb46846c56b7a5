"""What PRIP's two supervised stages share: their settings, what they begin with, and the loop.

A step's records are a matter of (seed, place in the run), and so is what is random in it: a stopped run knows
where it was from the number of steps alone, and 8 records at once are the 8 of one after the other.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...core.errors import BadInput
from ...core.seeds import seed_of
from ...reports.training import PICTURES, write_report
from ...rewriters.prip.presets import build, build_vision_tower, find_preset
from ...rewriters.prip.rewriter import EMBEDDED_REFINER, PripRewriter, RefinerSettings, check_tower
from ...rewriters.reprompt import SETTINGS, read_settings
from ...storage.cache import Cache
from ..common import distributed
from ..common.run_folder import append_lines, drop_later_lines, newest_checkpoint, step_of, write_folder
from ..common.start import check_lost
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
from .config import StageConfig
from .log import LoggedPicture
from .pivots import TOO_ALIKE, Pivots, variation

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from ...rewriters.prip.model import Prip
    from ...rewriters.prip.vision import ImagePivot


LINES = ("metrics.jsonl", "evaluations.jsonl")
SHOWN = 4  # samples of an evaluation


def begin(config: StageConfig) -> tuple[Prip, ImagePivot, dict[str, Any], Path | None]:
    """(refiner in float32 on the CPU, its vision tower, its `reprise.json`, its folder where it has one).

    Raises CheckpointError where a part is missing, damaged, or does not fit another.
    """
    from ...rewriters.prip.model import Prip, untrained
    from ...rewriters.prip.vision import ImagePivot

    folder, settings = None, RefinerSettings()
    if config.model is not None:
        folder = EMBEDDED_REFINER if config.model == "shapeworld" else Path(config.model).expanduser()
        model = Prip.from_pretrained(folder, dtype="float32")
        tower = ImagePivot.from_pretrained(folder / "image")
        settings = read_settings(folder / SETTINGS, RefinerSettings)
    else:
        preset = find_preset(str(config.preset))
        sources = preset.sources | config.sources.model_dump(exclude_none=True)
        if sources:
            model = untrained(preset.config, sources["encoder"], sources["decoder"])
            tower = ImagePivot.from_blip2(sources["image"])
        else:
            from ...shapeworld.tokenizers import tokenizers

            model, tower = build(preset, *tokenizers()), build_vision_tower(preset)
    if config.tower is not None:
        tower = ImagePivot.from_pretrained(config.tower.expanduser() / "image")
    check_tower(tower, model)
    return model.eval(), tower.eval(), settings.model_dump(exclude_none=True), folder


Item = TypeVar("Item")


class StageLoop(Generic[Item]):
    """One run of a stage, which says what is trained (`_prepare`), on what, and how it is judged."""

    trainer: str
    config: Any  # a StageConfig
    frozen: tuple[str, ...]  # folders of a refiner in which nothing changes
    weights: dict[str, Parameter]

    def __init__(self, config: Any, run: Path, resume: bool, log: Callable[[str], None]):
        import torch
        from transformers import set_seed

        self.config, self.folder, self.log = config, run, log
        self.checkpoint = newest_checkpoint(run / "checkpoints") if resume else None
        for name in LINES:
            # From the start, the evaluation before the first step is made again, too.
            drop_later_lines(run / name, step_of(self.checkpoint) if self.checkpoint else -1)
        gpu = distributed.use_gpu(config.device)
        self.device = torch.device("cuda" if gpu else "cpu")
        set_seed(config.seed)
        self.model, self.tower, self.settings, self.source = begin(config)
        self.rewriter = PripRewriter(self.model, **self._decoding())
        training, aside = self._records()
        aside = random.Random("evaluate").sample(aside, min(len(aside), config.eval_most))
        self.items, self.aside = self._items(training), self._items(aside) if aside else []
        self._prepare(gpu)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), config.learning_rate, weight_decay=config.weight_decay
        )
        factor = learning_rate_factor(config, self.optimizer)
        self.rate = lambda done: config.learning_rate * factor(done)

    def run(self) -> Path:
        self._look()
        self._check_begun()
        done = self._restore()
        going = f"going on from {self.checkpoint.name}" if self.checkpoint else "from the start"
        self.log(f"{self._counted()}, {len(self.aside)} held out; {going}")
        if done == 0:
            self._evaluate(0)
        for step in range(done + 1, self.config.max_steps + 1):
            self._enter(step)
            row = self._step(step)
            append_lines(self.folder / LINES[0], [json.dumps(row)])
            self.log(f"step {step}/{self.config.max_steps} loss {row['loss']:.4f} {row['seconds']:.1f} s")
            last = step == self.config.max_steps
            if last or step % self.config.eval_every == 0:
                self._evaluate(step)
            if last or step % self.config.save_every == 0:
                self._save(step)
            if last or step % 10 == 0:
                write_report(self.folder, finished=last)
        self._enter(self.config.max_steps)  # of a run that was killed after its last step
        final = self._export()
        self.log(f"saved {final}; as models/reprise/refiners/NAME nodes and --rewriter prip:NAME know it")
        return final

    # What a stage says

    def _records(self) -> tuple[list[LoggedPicture], list[LoggedPicture]]:
        """(to train on, held out)."""
        raise NotImplementedError

    def _items(self, records: Sequence[LoggedPicture]) -> list[Item]:
        """What is learned from, tokenized; too long ones are left out."""
        raise NotImplementedError

    def _record(self, item: Item) -> LoggedPicture:
        raise NotImplementedError

    def _prepare(self, gpu: bool) -> None:
        """Put the model where it computes, freeze it, and set `weights`, which are trained."""
        raise NotImplementedError

    def _train_mode(self, on: bool) -> None:
        """Of the parts that are trained."""
        raise NotImplementedError

    def _weight(self, item: Item) -> int:
        """How much a record counts in a mean."""
        return 1

    def _loss(self, items: Sequence[Item]) -> Tensor:
        """The mean over the items' weights."""
        raise NotImplementedError

    def _figures(self) -> dict[str, float]:
        """Of the held-out items, under "set/figure"."""
        raise NotImplementedError

    def _written(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """(what was given, what was written) for a few held-out items."""
        raise NotImplementedError

    def _counted(self) -> str:
        raise NotImplementedError

    def _decoding(self) -> dict[str, Any]:
        """Settings that the refiner writes with."""
        return self.settings

    def _enter(self, step: int) -> None:
        """Before a step."""

    # Pictures

    def _look(self) -> None:
        """Pivots of all pictures, and their statistics where the refiner has none."""
        self.pivots = Pivots(self.config.pivots or self.folder / "pivots", self.tower.to(self.device))
        pictures = [self._record(item).picture for item in (*self.items, *self.aside)]
        damaged = self.pivots.prepare(pictures, self.log)
        self.tower.to("cpu")
        self._leave_out(damaged)
        if not self.model.pivot_mean.isfinite().all():
            self._take_statistics()
        self._warn()

    def _leave_out(self, damaged: set[Path]) -> None:
        items, of = (*self.items, *self.aside), len(self.items) + len(self.aside)
        lost = sum(self._record(item).picture in damaged for item in items)
        check_lost(lost, of, "the pictures", "cannot be read", "fetch or draw them again", self.log)
        self.items = [item for item in self.items if self._record(item).picture not in damaged]
        self.aside = [item for item in self.aside if self._record(item).picture not in damaged]
        if not self.items:
            raise BadInput("all pictures that were to be trained on cannot be read; fetch or draw them again")

    def _take_statistics(self) -> None:
        pictures = list(dict.fromkeys(self._record(item).picture for item in self.items))
        self.model.set_statistics(*self.pivots.statistics(pictures))

    def _warn(self) -> None:
        found = variation(self.model.pivot_mean, self.model.pivot_std)
        if found < TOO_ALIKE:
            self.log(
                f"warning: pivots vary by {found:.2%} of their size from picture to picture, as those "
                "of a vision tower that was never trained; they say little of a picture"
            )

    def _seen(self, items: Sequence[Item]) -> Tensor:
        """Standardised pivots (B, queries, width) of the items' pictures."""
        return self.model.standardise(self.pivots.of([self._record(item).picture for item in items]))

    # What happens in a step

    def _step(self, step: int) -> dict[str, Any]:
        import torch

        config, start, loss_of_all = self.config, time.perf_counter(), 0.0
        rate = self.rate(step - 1)
        set_learning_rate(self.optimizer, rate)
        parts = batches_of_step(step, self.items, config.batch_size, config.accumulation, config.seed)
        whole = sum(self._weight(item) for part in parts for item in part)
        torch.manual_seed(seed_of(config.seed, "step", step))
        self._train_mode(True)
        for part in parts:
            with autocast(self.device):
                loss = self._loss(part) * (sum(map(self._weight, part)) / whole)
            check_loss(loss, step, self.folder)
            loss.backward()
            loss_of_all += loss.item()
        norm = apply_gradient(self.weights, self.optimizer, config.max_grad_norm, step, self.folder)
        self._train_mode(False)
        return {
            "step": step,
            "loss": loss_of_all,
            "grad_norm": norm,
            "learning_rate": rate,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _evaluate(self, step: int) -> None:
        import torch

        if not self.aside:
            return
        start = time.perf_counter()
        with torch.no_grad(), autocast(self.device):
            figures = self._figures()
            shown = self.aside[:SHOWN]
            samples = [
                {
                    "prompt": given,
                    "rewrite": written,
                    "reason": "",
                    "fallback": None,
                    "scores": {},
                    "picture": self._keep(self._record(item).picture),
                }
                for item, (given, written) in zip(shown, self._written(shown), strict=True)
            ]
        row = {"step": step, **figures, "seconds": round(time.perf_counter() - start, 2), "samples": samples}
        append_lines(self.folder / LINES[1], [json.dumps(row)])
        self.log(f"evaluation at step {step}: " + " ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def _keep(self, picture: Path) -> str:
        """The name of a picture's copy for the report."""
        from ...storage.images import read_picture

        cache, key = Cache(self.folder / PICTURES), Cache.key("sample", str(picture))
        if cache.get_image(key) is None:
            cache.put_image(key, read_picture(picture))
        return key

    # What is kept

    def _check_begun(self) -> None:
        lines = [[str(one.image), one.prompt, one.system] for one in map(self._record, self.items)]
        now = {
            "records": len(lines),
            "sha256": hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
            "pictures": pictures_digest(self._record(item).picture for item in self.items),
        }
        check_same_data(self.folder, self.config.log, now, self.checkpoint is not None)

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the optimiser."""
        kept = {"pivot_mean": self.model.pivot_mean, "pivot_std": self.model.pivot_std}
        return {**self.weights, **kept}

    def _save(self, step: int) -> None:
        files = {"weights": self._tensors()}
        save_checkpoint(self.folder, step, files, self.optimizer, list(self.weights))

    def _restore(self) -> int:
        """Take the checkpoint's weights and optimiser; the steps behind it."""
        if self.checkpoint is not None:
            files = {"weights": self._tensors()}
            load_checkpoint(self.checkpoint, files, self.optimizer, list(self.weights), str(self.device))
        return step_of(self.checkpoint)

    def _export(self) -> Path:
        """Write `final/`. Parts in which nothing changed are the files that they were."""
        import torch

        config, final, model = self.config, self.folder / "final", self.model
        if config.export_dtype != "same":
            for part in (model.encoder, model.decoder, model.projector, self.tower):
                part.to(getattr(torch, config.export_dtype))
        settings = self.settings | self._decoding() | {"trainer": self.trainer}
        try:
            with write_folder(final) as folder:
                model.save_pretrained(folder, settings=settings, image=self.tower)
                if self.source is not None and config.export_dtype == "same":
                    for name in self.frozen:
                        shutil.rmtree(folder / name)
                        shutil.copytree(self.source / name, folder / name)
        except Exception as error:
            raise save_error(final, self.folder, error) from error
        return final
