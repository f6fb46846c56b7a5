"""PRIP, second stage: the Prompt Decoder learns to write the prompt of a picture from its pivot.

Source: PRIP (Zhan et al. 2024, arXiv 2407.00247), section 3.3.2, eq. 7: cross-entropy of the prompt that drew
a picture, given what a frozen image encoder saw; 900,000 prompts of DiffusionDB with CLIP above .28 and
aesthetic above 5.2, 2 epochs, learning rate 2e-5 (section 4.3, appendix A.4). Departs from it: pivots are
standardised by statistics of the pictures that are trained on, which are taken here, once; the decoder may be
trained by an adapter. Text is encoded by the functions of inference (`Prip.decoder_inputs`, `Prip.logits`).
Only the projector and the decoder change.

`train_image` is for refiners of the embedded world's size, for which there is no published vision tower:
tower, Q-Former, projector and decoder learn together, on running statistics. In the last tenth of the steps
the tower stays as it is, the statistics are those of its pivots, and only projector and decoder go on.

The run folder is that of the first stage (`encoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...rewriters.decoding import context_length, pad_token
from ...rewriters.prip.rewriter import drop_last_phrase
from ...storage.images import read_picture
from ..common import distributed
from ..common.data import check_lost
from ..common.lora import merged, training_dtype
from ..common.losses import prompt_error
from ..common.run_folder import run_training
from ..common.step_loop import Figures
from ..rollouts.picture_log import LoggedPicture
from .config import DecoderConfig
from .data import drawn_records, well_scored
from .loop import StageLoop
from .pivots import Pivots

if TYPE_CHECKING:
    from torch import Tensor


FIRST = 256  # pictures for the first statistics of a tower
FOLLOW = 0.05  # weight of a step in the running statistics
SETTLED = 0.9  # share of the steps after which tower and statistics stay as they are
SMALLEST = 1e-4  # least standard deviation while a tower is trained, as it is divided by


CONFIG = DecoderConfig
SEVERAL = False  # processes may share the work


def train(config: DecoderConfig, run: Path, resume: bool = False, log: Callable[[str], None] = print) -> Path:
    """Train a refiner's decoder, and return the refiner's folder, `run/final`. Raises as `run_training`."""
    distributed.require_one_process()
    return run_training(config, run, resume, log, lambda: DecoderLoop(config, run, resume, log))


@dataclass(frozen=True)
class DecoderItem:
    """A prompt as the decoder writes it, to its end, and the record of the picture that it drew."""

    ids: list[int]
    record: LoggedPicture


class DecoderLoop(StageLoop[DecoderItem]):
    trainer, unit = "prip-decoder", "pictures"
    config: DecoderConfig

    def records(self) -> list[LoggedPicture]:
        return well_scored(drawn_records(self.config.log, self.log), self.config.least)

    def items_of(self, records: Sequence[LoggedPicture]) -> list[DecoderItem]:
        most, room = self.config.max_tokens, context_length(self.model.decoder) - self.model.template_length()
        if most > room:
            raise BadInput(
                f"max_tokens={most} does not fit into the decoder beside template and pivot; it "
                f"has room for {room}"
            )
        end = self.model.decoder_tokenizer.eos_token_id
        written = [DecoderItem([*self.model.decoder_ids(record.system), end], record) for record in records]
        fitting = [one for one in written if 1 < len(one.ids) <= most]
        check_lost(
            len(written) - len(fitting),
            len(written),
            "the prompts",
            f"are empty or longer than max_tokens={most}",
            "raise max_tokens",
            self.log,
        )
        return fitting

    def record_of(self, item: DecoderItem) -> LoggedPicture:
        return item.record

    def freeze(self) -> None:
        import torch

        config, model = self.config, self.model
        self.frozen = ("encoder",) if config.train_image else ("encoder", "image")
        model.requires_grad_(False)
        model.decoder.to(
            getattr(torch, training_dtype(config.dtype, self.device.type == "cuda", config.lora))
        )
        # The encoder stays in main memory, as it is not used.
        model.decoder.to(self.device)
        model.projector.to(self.device)
        for name in ("pivot_mean", "pivot_std"):
            setattr(model, name, getattr(model, name).to(self.device))
        if config.gradient_checkpointing:
            model.decoder.gradient_checkpointing_enable()
        self.adapter = None
        if config.lora:
            from peft.tuners.lora import LoraModel

            # Puts layers into the model itself, which keeps its class.
            self.adapter = LoraModel(model.decoder, config.lora.adapter(), "default")
            for weight in model.decoder.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()
        else:
            model.decoder.requires_grad_(True)
        model.projector.requires_grad_(not config.blind)
        trained = {f"projector.{name}": one for name, one in model.projector.named_parameters()}
        trained |= {f"decoder.{name}": one for name, one in model.decoder.named_parameters()}
        if config.train_image:
            self.tower.to(self.device).requires_grad_(True)
            trained |= {f"image.{name}": one for name, one in self.tower.named_parameters()}
        self.weights = {name: one for name, one in trained.items() if one.requires_grad}

    def train_mode(self, on: bool) -> None:
        self.model.decoder.train(on)
        if self.config.train_image:
            self.tower.train(on)

    def weight(self, item: DecoderItem) -> int:
        return len(item.ids)

    def loss(self, items: Sequence[DecoderItem]) -> Tensor:
        return self._error(items, self.pivots_of(items))

    def _error(self, items: Sequence[DecoderItem], pivots: Tensor) -> Tensor:
        import torch

        ids = [item.ids for item in items]
        logits = self.model.logits(pivots, [[]] * len(ids), ids)
        most, pad = logits.shape[1], pad_token(self.model.decoder_tokenizer)
        tokens = torch.tensor([[*row, *[pad] * (most - len(row))] for row in ids], device=logits.device)
        mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in ids], device=logits.device)
        return prompt_error(logits, tokens, mask)

    def figures(self) -> dict[str, float]:
        """Cross-entropy per token, given the right pivots and given those of other pictures."""
        import torch

        each = self.config.batch_size
        parts = [self.held_out[start : start + each] for start in range(0, len(self.held_out), each)]
        seen = torch.cat([self.pivots_of(part) for part in parts])
        sums, count = {"held-out": 0.0, "swapped": 0.0}, sum(map(self.weight, self.held_out))
        for name, pivots in (("held-out", seen), ("swapped", seen.roll(1, 0))):
            for number, part in enumerate(parts):
                given = pivots[number * each : number * each + len(part)]
                sums[name] += float(self._error(part, given)) * sum(map(self.weight, part))
        return {f"{name}/loss": value / count for name, value in sums.items()}

    def texts(self, items: Sequence[DecoderItem]) -> list[tuple[str, str]]:
        """What the decoder writes from the pictures alone."""
        pivots = list(self.pivots_of(items))
        written = self.rewriter.generate(pivots, [[]] * len(pivots), [None] * len(pivots))
        texts = [" ".join(one.text.split()) for one in written]
        return [
            (item.record.system, drop_last_phrase(text) if one.truncated else text)
            for item, one, text in zip(items, written, texts)
        ]

    def decoding(self) -> dict[str, Any]:
        own = {"max_new_tokens": self.config.max_new_tokens, "temperature": self.config.temperature}
        return self.settings | own

    # A tower that is trained

    def take_pivots(self) -> None:
        if not self.config.train_image:
            return super().take_pivots()
        import torch

        pictures = list(dict.fromkeys(item.record.picture for item in (*self.items, *self.held_out)))
        self.leave_out({path for path in pictures if not _readable(path)})
        with torch.no_grad():
            raw = torch.cat(
                [
                    self._raw(self.items[start : start + 16])
                    for start in range(0, min(FIRST, len(self.items)), 16)
                ]
            )
        self.model.set_statistics(raw.mean(0), raw.std(0, correction=0).clamp_min(SMALLEST))

    def _raw(self, items: Sequence[DecoderItem]) -> Tensor:
        """The tower's pivots as it is now, (B, queries, width)."""
        import torch

        pixels = [self.tower.preprocess(read_picture(item.record.picture)[None]) for item in items]
        return self.tower.embed(torch.cat(pixels))

    def pivots_of(self, items: Sequence[DecoderItem]) -> Tensor:
        import torch

        if self.config.blind:
            return torch.zeros(len(items), *self.model.pivot_mean.shape, device=self.device)
        if not self.config.train_image or self.settled:
            return super().pivots_of(items)
        raw = self._raw(items)
        if raw.requires_grad:
            self.looks.append(raw.detach())
        return self.model.standardise(raw)

    settled = False  # whether the tower stays as it is from now on
    looks: list[Tensor]  # what it saw in the step, (B, queries, width) each

    def learn(self, step: int) -> Figures:
        import torch

        self._settle(step)
        self.looks = []
        figures = super().learn(step)
        if self.looks:  # for the next step: all batches of one have the same statistics
            seen = torch.cat(self.looks)
            model = self.model
            deviation = (seen - model.pivot_mean).square().mean(0)
            spread = model.pivot_std.square().lerp(deviation, FOLLOW).sqrt()
            model.set_statistics(model.pivot_mean.lerp(seen.mean(0), FOLLOW), spread.clamp_min(SMALLEST))
        return figures

    def _settle(self, step: int) -> None:
        """In the last steps a trained tower and its statistics stay as they will be exported."""
        if not self.config.train_image or self.settled or step <= SETTLED * self.config.max_steps:
            return
        self.settled = True
        self.tower.eval().requires_grad_(False)
        self.pivots = Pivots(self.config.pivots or self.folder / "pivots", self.tower)
        self.pivots.prepare([item.record.picture for item in (*self.items, *self.held_out)], self.log)
        self.take_statistics()
        self.warn()

    def export(self, folder: Path) -> None:
        self._settle(self.config.max_steps)  # where the run was killed after its last step
        if self.adapter is not None:
            self.model.decoder = merged(self.adapter)
        super().export(folder)


def _readable(path: Path) -> bool:
    try:
        read_picture(path)
    except BadInput:
        return False
    return True
