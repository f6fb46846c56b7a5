"""PRIP, first stage: the Preference Encoder learns to predict the picture that people would prefer.

Source: PRIP (Zhan et al. 2024, arXiv 2407.00247), section 3.3.1, eq. 6: the squared distance between the
encoder's output for a user's prompt and the pivot of the picture i* = arg max reward among those of that
prompt; 300,000 pairs of DiffusionDB, 3 epochs, learning rate 1e-3 (appendix A.4). Departs from it: pivots are
standardised number by number, so that the error of the mean picture is 1, and all numbers of a pivot count
the same. Only the encoder changes. The statistics are those of the second stage where it was trained first;
else they are taken here, of the pictures that are trained on.

The run folder has `config.yaml`; `metrics.jsonl`, a line for each step; `evaluations.jsonl`; `tensorboard/`;
`report.html`; `pivots/`; `checkpoints/`; and `final/`, a refiner as `PripRewriter` loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import BadInput
from ..common import distributed
from ..common.data import check_lost
from ..common.losses import pivot_error
from ..common.run_folder import run_training
from ..rollouts.picture_log import LoggedPicture
from .config import EncoderConfig
from .data import drawn_records, preferred_records
from .loop import StageLoop

if TYPE_CHECKING:
    from torch import Tensor


CONFIG = EncoderConfig
SEVERAL = False  # processes may share the work


def train(config: EncoderConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a refiner's encoder, and return the refiner's folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process()
    return run_training(config, run, resume, log, lambda: EncoderLoop(config, run, resume, log))


@dataclass(frozen=True)
class EncoderItem:
    """A user's prompt as the encoder reads it, and the record of its preferred picture."""

    ids: list[int]
    record: LoggedPicture


class EncoderLoop(StageLoop[EncoderItem]):
    trainer, unit, frozen = "prip-encoder", "prompts", ("decoder", "image")
    config: EncoderConfig

    def records(self) -> list[LoggedPicture]:
        config = self.config
        records = drawn_records(config.log, self.log)
        return preferred_records(records, config.rewards, config.preferred, config.seed, self.log)

    def items_of(self, records: Sequence[LoggedPicture]) -> list[EncoderItem]:
        found = []
        for record in records:
            try:
                ids, _ = self.rewriter.encode_prompts([record.prompt])
            except BadInput:
                continue
            found.append(EncoderItem(ids[record.prompt], record))
        window = self.model.config.window
        check_lost(
            len(records) - len(found),
            len(records),
            "the prompts",
            f"are longer than the encoder's window of {window} tokens, or than the decoder has room for",
            "shorten them",
            self.log,
        )
        return found

    def record_of(self, item: EncoderItem) -> LoggedPicture:
        return item.record

    def freeze(self) -> None:
        import torch

        self.model.requires_grad_(False)
        if self.device.type == "cuda":  # it only writes samples
            self.model.decoder.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)
        self.model.to(self.device)
        if self.config.gradient_checkpointing:
            self.model.encoder.t5.gradient_checkpointing_enable()
        self.weights = dict(self.model.encoder.requires_grad_(True).named_parameters())

    def train_mode(self, on: bool) -> None:
        self.model.encoder.train(on)

    def loss(self, items: Sequence[EncoderItem]) -> Tensor:
        return pivot_error(self.model.encode([item.ids for item in items]), self.pivots_of(items))

    def figures(self) -> dict[str, float]:
        """The error, in parts of the mean pivot's on the same pictures."""
        import torch

        error = size = 0.0
        for start in range(0, len(self.held_out), self.config.batch_size):
            part = self.held_out[start : start + self.config.batch_size]
            seen = self.pivots_of(part)
            error += len(part) * float(pivot_error(self.model.encode([item.ids for item in part]), seen))
            size += len(part) * float(pivot_error(torch.zeros_like(seen), seen))
        return {"held-out/error": error / size}

    def texts(self, items: Sequence[EncoderItem]) -> list[tuple[str, str]]:
        prompts = [item.record.prompt for item in items]
        return [(prompt, row[0].prompt) for prompt, row in zip(prompts, self.rewriter.rewrite(prompts))]
