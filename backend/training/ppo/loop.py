"""The loop of PPO: roll out, look back, learn, a few times over.

A step: the policy writes, and refinements and originals are drawn and scored (`rollouts`). One pass over what
was written, without gradients, gives the log-probabilities of the policy and its reference and the values;
advantages follow. Then some epochs of minibatches. The model stays in eval mode: dropout would train another
policy than the one that wrote.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.model_files import user_path
from ...factory import open_rewards
from ...rewards.scales import RunningNorm
from ...rewriters.prip.model import Prip
from ...rewriters.prip.rewriter import EMBEDDED_REFINER, PripRewriter, RefinerSettings
from ...rewriters.reprompt import SETTINGS, read_settings
from ...storage.checksums import check_folder
from ..common.data import check_same_data, lines_digest
from ..common.losses import (
    clipped_surrogate,
    clipped_value_error,
    gae,
    kl_k3,
    leave_one_out,
    pivot_error,
    whiten,
)
from ..common.offload import OffloadRole
from ..common.run_folder import append_lines
from ..common.step_loop import Figures, StepLoop
from ..common.steps import check_loss, clip_gradient
from ..rollouts.base import mean
from ..rollouts.evaluation import Evaluator, evaluation_prompts
from ..rollouts.prompts import PromptStream, TrainingPrompt, read_prompts
from ..rollouts.scoring import open_scorer
from .config import PpoConfig
from .policy import ValueHead, WarmPivots, pivots_of, tokens_of
from .rollouts import PpoRollouts, Row, lines_of

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


@dataclass
class SampleTokens:
    """A row's tokens before the step's first update, (T,) each."""

    logps: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PpoLoop(StepLoop):
    """One run."""

    config: PpoConfig
    usage = "as models/reprise/refiners/NAME nodes and --rewriter prip:NAME know it"

    def load(self) -> None:
        config = self.config
        rewards = open_rewards((*config.rewards, *config.held_out))
        self._load_policy()
        self.prompts = read_prompts(config.prompts, "train", config.seed)
        sets = evaluation_prompts(self.prompts, config.eval_prompts)
        for some in (self.prompts, *sets.values()):
            self.rewriter.encode_prompts([one.prompt for one in some])  # raises for those it has no room for
        text_rewards = {name: one for name, one in rewards.items() if one.spec.reads != "images"}
        picture_rewards = {name: one for name, one in rewards.items() if name not in text_rewards}
        policy = OffloadRole(lambda: [self.model, self.critic], lambda: self.optimizer)
        self.scorer = open_scorer(config, self.folder, self.device.type, picture_rewards, policy)
        self.timer = self.scorer.timer
        stream = PromptStream(self.prompts, config.seed)
        self.rollouts = PpoRollouts(self.rewriter, self.scorer, text_rewards, stream, config)
        self.evaluator = Evaluator(self.rewriter, self.scorer, sets, config)
        taken = [one.prompt for one in self._taken(self.prompts)]
        self.warm = WarmPivots(self.folder / "warm", taken, self.rewriter)
        self.kl = config.kl

    def summary(self) -> str:
        return f"{len(self.prompts)} prompts"

    def prepare(self) -> None:
        now = {"prompts": lines_digest(one.model_dump_json() for one in self.prompts)}
        check_same_data(self.folder, self.config.prompts, now, self.checkpoint is not None)

    # What the run is made of

    def _load_policy(self) -> None:
        """The refiner, of which the encoder alone learns, and the value head."""
        config, gpu = self.config, self.device.type == "cuda"
        self.start = EMBEDDED_REFINER if config.init == "shapeworld" else user_path(config.init)
        half = config.dtype == "bfloat16" or config.dtype == "auto" and gpu and torch.cuda.is_bf16_supported()
        self.model = Prip.from_pretrained(
            self.start,
            device=self.device.type,
            dtype="bfloat16" if half else "float32",
            encoder_dtype="float32",
        )
        self.settings = read_settings(self.start / SETTINGS, RefinerSettings)
        # What is drawn while training is drawn from the whole distribution; evaluations are as in use.
        self.rewriter = PripRewriter(
            self.model,
            max_new_tokens=config.max_new_tokens or self.settings.max_new_tokens,
            temperature=config.temperature,
            top_p=1.0,
            beams=self.settings.beams,
            length_penalty=self.settings.length_penalty,
            batch_size=config.write_batch,
        )
        self.model.requires_grad_(False)
        self.model.encoder.requires_grad_(True)
        self.critic = ValueHead(self.model.projector.out_features, config.critic_width).to(self.model.device)
        self.groups: dict[str, dict[str, Parameter]] = {
            "encoder": dict(self.model.encoder.named_parameters()),
            "critic": dict(self.critic.named_parameters()),
        }
        self.weights = {
            f"{group}.{name}": one for group, some in self.groups.items() for name, one in some.items()
        }

    def make_optimizer(self) -> Optimizer:
        config = self.config
        rates = {"encoder": config.learning_rate, "critic": config.critic_learning_rate}
        groups = [{"params": list(some.values()), "lr": rates[name]} for name, some in self.groups.items()]
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    def _taken(self, prompts: Sequence[TrainingPrompt]) -> list[TrainingPrompt]:
        """Those of the prompts that a run of this length reaches."""
        count = min(len(prompts), self.config.max_steps * self.config.prompts_per_step)
        return [one for _, one in PromptStream(prompts, self.config.seed).take(count)]

    # A step

    def learn(self, step: int) -> Figures:
        self.scorer.start_step()
        batch = self.rollouts.collect()
        rows = batch.valid
        with self.timer("update"):
            before, figures = self._look_back(rows)
        for (_, sample), tokens in zip(rows, before, strict=True):
            sample.advantage = tokens.advantages.mean().item()
        append_lines(self.folder / "rollouts" / "rollouts.jsonl", lines_of(step, batch))
        with self.timer("update"):
            figures |= self._update(step, list(zip(rows, before, strict=True)))
        figures["kl_weight"] = self.kl
        if self.config.kl_target is not None:
            self.kl = adapted(self.kl, figures["kl"], self.config.kl_target)
        self.evaluator.recent.append(batch.figures["gain"])
        return {**figures, **batch.figures, **self.scorer.step_figures()}

    def _look_back(self, rows: Sequence[Row]) -> tuple[list[SampleTokens], dict[str, float]]:
        """The rows' tokens before the step's first update, the advantages that follow, and figures of it."""
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        entropy: list[Tensor] = []
        for part in self._passes(range(len(rows)), rows):
            some = [rows[i] for i in part]
            with torch.no_grad():
                now = tokens_of(self.model, some, pivots_of(self.model, some), self.config.temperature)
                first = tokens_of(self.model, some, self._warm(some), self.config.temperature)
                values = self.critic(now.states)
            parts = [tensor.split(now.lengths) for tensor in (now.logps, first.logps, values)]
            found |= dict(zip(part, zip(*parts, strict=True), strict=True))
            entropy.append(now.entropy)
        logps, reference, values = (list(each) for each in zip(*(found[i] for i in range(len(rows)))))
        lengths = [len(row) for row in values]
        padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # (B, T)
        mask = torch.arange(padded.shape[1], device=padded.device) < padded.new_tensor(lengths)[:, None]
        gains = padded.new_tensor([sample.gain for _, sample in rows])
        if self.config.group_baseline:
            prompts = torch.tensor([group.position for group, _ in rows], device=gains.device)
            gains = leave_one_out(gains, prompts)
        advantages, returns = gae(gains, padded, mask, self.config.gae_lambda)
        flat, earned = advantages[mask], returns[mask]
        if self.config.whiten:
            flat = whiten(flat)
        tokens = [
            SampleTokens(*row)
            for row in zip(logps, reference, values, flat.split(lengths), earned.split(lengths), strict=True)
        ]
        current = torch.cat(logps)
        drawn = padded.new_tensor([logp for _, sample in rows for logp in sample.written.logps])
        left = (earned - torch.cat(values)).var(correction=0) / earned.var(correction=0).clamp_min(1e-12)
        return tokens, {
            "kl": kl_k3(current, torch.cat(reference)).mean().item(),
            "entropy": torch.cat(entropy).mean().item(),
            # From the distribution that was drawn from: rounding alone, which half precision has more of.
            "sampler_off": ((current - drawn).exp() - 1).abs().max().item(),
            "explained": 1 - left.item(),  # of the variance of returns, by the value head
        }

    def _update(self, step: int, rows: Sequence[tuple[Row, SampleTokens]]) -> dict[str, float]:
        """The step's epochs of minibatches."""
        config, off = self.config, 0.0
        totals: dict[str, float] = {}
        norms: list[list[float]] = []
        for epoch in range(config.epochs):
            order = random.Random(f"{config.seed} {step} {epoch}").sample(range(len(rows)), len(rows))
            for number in range(config.minibatches):
                first, end = (len(rows) * at // config.minibatches for at in (number, number + 1))
                if first == end:  # fewer were left than there are minibatches
                    continue
                chosen = order[first:end]
                count = sum(len(rows[i][1].logps) for i in chosen)
                for part in self._passes(chosen, [row for row, _ in rows]):
                    loss, found = self._loss([rows[i] for i in part], count, len(chosen))
                    check_loss(loss, step, self.folder)
                    loss.backward()
                    if not norms:
                        off = max(off, found["off"])
                    for name, value in found.items():
                        totals[name] = totals.get(name, 0.0) + value
                norms.append(self._take_optimiser_step(step))
        tokens, drift = totals.pop("tokens"), totals.pop("drift") / totals.pop("rows")
        del totals["off"]
        grads = zip(("grad_norm", "critic_grad_norm"), map(mean, zip(*norms)))
        return {
            **{name: value / tokens for name, value in totals.items()},
            "ratio_off": off,
            "drift": drift,
            **dict(grads),
        }

    def _loss(
        self, rows: Sequence[tuple[Row, SampleTokens]], count: int, of: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The share of some rows in the loss of a minibatch of `count` tokens in `of` rows, and sums."""
        config, some = self.config, [row for row, _ in rows]
        old, reference, values, advantages, returns = (
            torch.cat([getattr(tokens, name) for _, tokens in rows])
            for name in SampleTokens.__dataclass_fields__
        )
        pivots = pivots_of(self.model, some)
        now = tokens_of(self.model, some, pivots, config.temperature)
        policy, ratios = clipped_surrogate(now.logps, old, advantages, config.clip)
        away = kl_k3(now.logps, reference)
        errors = clipped_value_error(self.critic(now.states), values, returns, config.value_clip)
        drift = pivot_error(pivots, self._warm(some))
        loss = (policy + self.kl * away + errors).sum() / count
        if config.anchor:
            loss = loss + config.anchor * drift * (len(rows) / of)
        apart = (ratios.detach() - 1).abs()
        return loss, {
            "tokens": len(policy),
            "rows": len(rows),
            "policy_loss": policy.sum().item(),
            "value_loss": errors.sum().item(),
            "ratio": ratios.sum().item(),
            "clipped": (apart > config.clip).sum().item(),
            "off": apart.max().item(),
            "drift": drift.item() * len(rows),
        }

    def _take_optimiser_step(self, step: int) -> list[float]:
        """The norms of the groups' gradients, each clipped by itself."""
        most = self.config.max_grad_norm
        norms = [clip_gradient(some, most, step, self.folder) for some in self.groups.values()]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def _passes(self, chosen: Sequence[int], rows: Sequence[Row]) -> Iterator[list[int]]:
        """The chosen rows, `batch_size` at a time, those of similar lengths together."""

        def length(i: int) -> tuple[int, int]:
            group, sample = rows[i]
            return len(group.prefix) + len(sample.written.ids), i

        order = sorted(chosen, key=length)
        for start in range(0, len(order), self.config.batch_size):
            yield order[start : start + self.config.batch_size]

    def _warm(self, rows: Sequence[Row]) -> Tensor:
        return self.warm.of([group.source.prompt for group, _ in rows], self.model.device)

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        return self.evaluator.evaluate(step)

    def record_evaluation(self, row: Figures, figures: dict[str, float]) -> bool:
        best = self.folder / "best"
        return self.evaluator.record(self.folder, row, lambda: self.write(best), self.log)

    # What is stored

    def tensors(self) -> dict[str, dict[str, Any]]:
        return dict(self.groups)

    def state(self) -> dict[str, Any]:
        return {
            "position": self.rollouts.stream.position,
            "recent": self.evaluator.recent,
            "kl": self.kl,
            "stopped": self.stopped,
            "norms": {name: norm.state() for name, norm in self.rollouts.norms.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.rollouts.stream.position, self.evaluator.recent = state["position"], state["recent"]
        self.kl, self.stopped = state["kl"], state["stopped"]
        self.rollouts.norms = {name: RunningNorm.from_state(norm) for name, norm in state["norms"].items()}

    def export(self, folder: Path) -> None:
        """The encoder; all else as it was at the start, in its own precision; no value head."""
        config, start = self.config, self.start
        settings = {
            **self.settings.model_dump(exclude_none=True),
            "trainer": "ppo",
            "max_new_tokens": self.rewriter.max_new_tokens,
        }
        whole = config.export_dtype == "same"
        model = self.model if whole else Prip.from_pretrained(start, dtype="float32")
        if not whole:
            model.encoder.load_state_dict(self.model.encoder.state_dict())
            model.to(getattr(torch, config.export_dtype))
        model.save_pretrained(folder, settings=settings, frozen=start if whole else None)
        if (start / "image").is_dir():
            check_folder(start / "image")  # a copy gets checksums of its own
            shutil.copytree(start / "image", folder / "image")

    def progress_line(self, row: Figures) -> str:
        return (
            f"gain {row['gain']:+.4f} better {row['better']:.2f} kl {row['kl']:.4f} "
            f"ratio {row['ratio']:.4f} drift {row['drift']:.4f}"
        )


def adapted(weight: float, kl: float, target: float) -> float:
    """The weight of the KL after a step whose KL was `kl`.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, with K = 0.1, and the KL per token.
    """
    return weight * (1 + 0.1 * min(0.2, max(-0.2, kl / target - 1)))
