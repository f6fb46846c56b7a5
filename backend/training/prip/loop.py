"""What PRIP's two supervised stages share: what they start from, the pictures' pivots, one step."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...core.errors import BadInput
from ...core.model_files import user_path
from ...rewriters.prip.presets import build, build_vision_tower, find_preset
from ...rewriters.prip.rewriter import EMBEDDED_REFINER, PripRewriter, RefinerSettings, check_tower
from ...rewriters.reprompt import SETTINGS, read_settings
from ...storage.checksums import check_folder
from ..common.data import (
    batches_of_step,
    check_lost,
    check_same_data,
    nothing_left,
    pictures_digest,
    split_by_prompt,
)
from ..common.step_loop import Figures, StepLoop
from ..common.steps import autocast
from ..rollouts.picture_log import LoggedPicture
from .config import StageConfig
from .pivots import TOO_ALIKE, Pivots, variation

if TYPE_CHECKING:
    from torch import Tensor

    from ...rewriters.prip.model import Prip
    from ...rewriters.prip.vision import ImagePivot


SHOWN = 4  # samples of an evaluation in the report


def load_start(config: StageConfig) -> tuple[Prip, ImagePivot, dict[str, Any], Path | None]:
    """(refiner in float32 on the CPU, its vision tower, its `reprise.json`, its folder where it has one).

    Raises CheckpointError where a part is missing, damaged, or does not fit another.
    """
    from ...rewriters.prip.model import Prip, untrained
    from ...rewriters.prip.vision import ImagePivot

    folder, settings = None, RefinerSettings()
    if config.model is not None:
        folder = EMBEDDED_REFINER if config.model == "shapeworld" else user_path(config.model)
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
            from ...shapeworld.tokenizers import refiner_tokenizers

            model, tower = build(preset, *refiner_tokenizers()), build_vision_tower(preset)
    if config.tower is not None:
        tower = ImagePivot.from_pretrained(user_path(config.tower) / "image")
    check_tower(tower, model)
    return model.eval(), tower.eval(), settings.model_dump(exclude_none=True), folder


Item = TypeVar("Item")


class StageLoop(StepLoop, Generic[Item]):
    """One run of a stage. It fills in what is trained (`freeze`), on what (`items_of`), and its loss."""

    trainer: str
    frozen: tuple[str, ...]  # folders of a refiner in which nothing changes
    usage = "as models/reprise/refiners/NAME nodes and --rewriter prip:NAME know it"

    def load(self) -> None:
        config = self.config
        self.model, self.tower, self.settings, self.source = load_start(config)
        self.rewriter = PripRewriter(self.model, **self.decoding())
        records = self.records()
        training, held_out = split_by_prompt(records, config.eval_share)
        if not training:
            raise nothing_left(records, config.eval_share)
        held_out = random.Random("evaluate").sample(held_out, min(len(held_out), config.eval_most))
        self.items, self.held_out = self.items_of(training), self.items_of(held_out) if held_out else []
        self.freeze()

    def prepare(self) -> None:
        self.take_pivots()
        lines = [[str(one.image), one.prompt, one.system] for one in map(self.record_of, self.items)]
        now = {
            "records": len(lines),
            "sha256": hashlib.sha256(json.dumps(lines).encode()).hexdigest(),
            "pictures": pictures_digest(self.record_of(item).picture for item in self.items),
        }
        check_same_data(self.folder, self.config.log, now, self.checkpoint is not None)

    def learn(self, step: int) -> Figures:
        config = self.config
        parts = batches_of_step(step, self.items, config.batch_size, config.accumulation, config.seed)
        weight = sum(self.weight(item) for part in parts for item in part)
        self.train_mode(True)
        figures = self.descend(step, (self._share(part, weight) for part in parts))
        self.train_mode(False)
        return figures

    def _share(self, items: Sequence[Item], weight: int) -> Tensor:
        """The share of some items in the loss of a step of the weight `weight`."""
        with autocast(self.device):
            return self.loss(items) * (sum(map(self.weight, items)) / weight)

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        import torch

        if not self.held_out:
            return None
        shown = self.held_out[:SHOWN]
        with torch.no_grad(), autocast(self.device):
            figures, written = self.figures(), self.texts(shown)
        samples = [
            {
                "prompt": given,
                "rewrite": text,
                "reason": "",
                "fallback": None,
                "scores": {},
                "picture": self.copy_for_report(self.record_of(item).picture),
            }
            for item, (given, text) in zip(shown, written, strict=True)
        ]
        return figures, {"samples": samples}

    def summary(self) -> str:
        return f"{len(self.items)} {self.unit}, {len(self.held_out)} held out"

    def tensors(self) -> dict[str, dict[str, Any]]:
        statistics = {"pivot_mean": self.model.pivot_mean, "pivot_std": self.model.pivot_std}
        return {"weights": {**self.weights, **statistics}}

    def export(self, folder: Path) -> None:
        """Parts in which nothing changed are the files that they were."""
        import torch

        config, model = self.config, self.model
        if config.export_dtype != "same":
            for part in (model.encoder, model.decoder, model.projector, self.tower):
                part.to(getattr(torch, config.export_dtype))
        settings = self.settings | self.decoding() | {"trainer": self.trainer}
        model.save_pretrained(folder, settings=settings, image=self.tower)
        if self.source is not None and config.export_dtype == "same":
            for name in self.frozen:
                check_folder(self.source / name)  # a copy gets checksums of its own
                shutil.rmtree(folder / name)
                shutil.copytree(self.source / name, folder / name)

    # What a stage fills in

    unit: str  # what an item is, in the plural

    @abstractmethod
    def records(self) -> list[LoggedPicture]:
        """What is learned from, and held out."""

    @abstractmethod
    def items_of(self, records: Sequence[LoggedPicture]) -> list[Item]:
        """What is learned from them, tokenized; too long ones are left out."""

    @abstractmethod
    def record_of(self, item: Item) -> LoggedPicture: ...

    @abstractmethod
    def freeze(self) -> None:
        """Put the model where it computes, freeze it but for `weights`, and set these."""

    @abstractmethod
    def train_mode(self, on: bool) -> None:
        """Of the parts that are trained."""

    def weight(self, item: Item) -> int:
        """How much an item counts in a mean."""
        return 1

    @abstractmethod
    def loss(self, items: Sequence[Item]) -> Tensor:
        """The weighted mean over the items."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Of the held-out items, under "set/figure"."""

    @abstractmethod
    def texts(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """(what was given, what was written) for a few held-out items."""

    def decoding(self) -> dict[str, Any]:
        """Settings that the refiner writes with."""
        return self.settings

    # Pictures

    def take_pivots(self) -> None:
        """Pivots of all pictures, and their statistics where the refiner has none."""
        self.pivots = Pivots(self.config.pivots or self.folder / "pivots", self.tower.to(self.device))
        pictures = [self.record_of(item).picture for item in (*self.items, *self.held_out)]
        damaged = self.pivots.prepare(pictures, self.log)
        self.tower.to("cpu")
        self.leave_out(damaged)
        if not self.model.pivot_mean.isfinite().all():
            self.take_statistics()
        self.warn()

    def leave_out(self, damaged: set[Path]) -> None:
        items = (*self.items, *self.held_out)
        lost = sum(self.record_of(item).picture in damaged for item in items)
        check_lost(lost, len(items), "the pictures", "cannot be read", "fetch or draw them again", self.log)
        self.items = [item for item in self.items if self.record_of(item).picture not in damaged]
        self.held_out = [item for item in self.held_out if self.record_of(item).picture not in damaged]
        if not self.items:
            raise BadInput("all pictures that were to be trained on cannot be read; fetch or draw them again")

    def take_statistics(self) -> None:
        pictures = list(dict.fromkeys(self.record_of(item).picture for item in self.items))
        self.model.set_statistics(*self.pivots.statistics(pictures))

    def warn(self) -> None:
        found = variation(self.model.pivot_mean, self.model.pivot_std)
        if found < TOO_ALIKE:
            self.log(
                f"warning: pivots vary by only {found:.2%} of their norm between pictures, like those of a "
                "vision tower that was never trained; they say little about a picture"
            )

    def pivots_of(self, items: Sequence[Item]) -> Tensor:
        """Standardised pivots (B, queries, width) of the items' pictures."""
        return self.model.standardise(self.pivots.of([self.record_of(item).picture for item in items]))
