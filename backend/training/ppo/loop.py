"""The loop of PPO: roll out, look back, learn, a few times over.

A step: the policy writes, both sides are drawn and judged (`ppo_rollouts`); one pass over what was written,
without gradients, says what the policy, its reference and the critic thought of it; advantages follow; then
some epochs of minibatches. All that is random in a step is a matter of (seed, step), so a stopped run knows
where it was from what its checkpoint holds. The model stays in eval mode: dropout would train another policy
than the one that wrote.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...factory import open_renderer, open_reward
from ...rewards.scales import RunningNorm
from ...rewriters.prip.model import Prip
from ...rewriters.prip.rewriter import EMBEDDED_REFINER, PripRewriter, RefinerSettings
from ...rewriters.reprompt import SETTINGS, read_settings
from ...storage.cache import Cache
from ..common.losses import (
    clipped_surrogate,
    clipped_value_error,
    gae,
    kl_k3,
    leave_one_out,
    pivot_error,
    whiten,
)
from ..common.offload import StageTimer, judge_modules, modules_mover, renderer_modules
from ..common.run_folder import append_lines
from ..common.step_loop import Figures, StepLoop
from ..common.steps import check_loss, clip_gradient
from ..rollouts.evaluation import evaluate, evaluation_prompts, record_evaluation, selection_metric
from ..rollouts.prompts import PromptStream, TrainingPrompt, read_prompts
from ..rollouts.scoring import PictureScorer
from .config import PpoConfig
from .policy import ValueHead, WarmPivots, pivots_of, tokens_of
from .rollouts import PpoRollouts, PpoSample, lines_of

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer


PICTURES = "rollouts/pictures"


@dataclass
class SampleTokens:
    """A sample's tokens as they were seen before the step's first update, (T,) each."""

    logps: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PpoLoop(StepLoop):
    """One run."""

    config: PpoConfig
    usage = "as models/reprise/refiners/NAME nodes and --rewriter prip:NAME know it"
    report_every = 1

    def load(self) -> None:
        config, run = self.config, self.folder
        self._load_policy()
        self.prompts = read_prompts(config.prompts, "train", config.seed)
        self.sets = evaluation_prompts(self.prompts, config.eval_prompts)
        for some in (self.prompts, *self.sets.values()):
            self.rewriter.encode_prompts([one.prompt for one in some])  # raises for those it has no room for
        rewards = {name: open_reward(name) for name in (*config.rewards, *config.held_out)}
        looking = {name: reward for name, reward in rewards.items() if reward.spec.reads == "images"}
        renderer = open_renderer(config.renderer)
        gpu = self.device.type == "cuda"
        self.timer = StageTimer(
            self.device.type, self._movers(renderer, looking) if config.offload and gpu else None
        )
        cache = Cache(run / PICTURES, int(config.keep_gb * 2**30))
        self.scorer = PictureScorer(
            renderer, looking, cache, self.timer, config.renderer.batch, overlap=config.renderer.external
        )
        self.rollouts = PpoRollouts(
            self.rewriter,
            self.scorer,
            {n: r for n, r in rewards.items() if n not in looking},
            {n: r.spec for n, r in rewards.items()},
            PromptStream(self.prompts, config.seed),
            config,
            self.timer,
        )
        self.watched = selection_metric(config.held_out, config.rewards, looking)
        self.warm = WarmPivots(run / "warm", [one.prompt for one in self._taken(self.prompts)], self.rewriter)
        self.kl = config.kl
        self.recent: list[float] = []  # gains since the last evaluation

    def summary(self) -> str:
        return f"{len(self.prompts)} prompts"

    # What the run is made of

    def _load_policy(self) -> None:
        """The refiner, of which the encoder alone learns, and the value head."""
        config, gpu = self.config, self.device.type == "cuda"
        self.start = EMBEDDED_REFINER if config.init == "shapeworld" else Path(config.init).expanduser()
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

    def _movers(self, renderer: Any, rewards: dict[str, Any]) -> dict[str, Callable[[str], None]]:
        refiner = modules_mover(lambda: [self.model, self.critic], lambda: self.optimizer)
        judging = modules_mover(lambda: judge_modules(rewards.values()))
        # While someone else draws, the judges are at work.
        elsewhere = self.config.renderer.external
        drawing = judging if elsewhere else modules_mover(lambda: renderer_modules(renderer))
        return {"write": refiner, "update": refiner, "render": drawing, "score": judging}

    def _taken(self, prompts: Sequence[TrainingPrompt]) -> list[TrainingPrompt]:
        """Those of the prompts that a run of this length comes to."""
        count = min(len(prompts), self.config.max_steps * self.config.prompts_per_step)
        return [asked for _, asked in PromptStream(prompts, self.config.seed).take(count)]

    # What happens in a step

    def learn(self, step: int) -> Figures:
        config, seconds = self.config, self.timer.seconds
        seconds.update(dict.fromkeys(seconds, 0.0))
        self.scorer.drawn = self.scorer.reused = 0
        batch = self.rollouts.collect()
        with self.timer("update"):
            pasts, figures = self._look_back(batch.valid)
        for sample, past in zip(batch.valid, pasts, strict=True):
            sample.advantage = past.advantages.mean().item()
        append_lines(self.folder / "rollouts" / "rollouts.jsonl", lines_of(step, batch))
        with self.timer("update"):
            figures |= self._learn(step, list(zip(batch.valid, pasts, strict=True)))
        figures |= {"kl_weight": self.kl}
        if config.kl_target is not None:
            self.kl = adapted(self.kl, figures["kl"], config.kl_target)
        self.recent.append(batch.figures["gain"])
        row = {
            **figures,
            **batch.figures,
            **{f"seconds/{name}": round(value, 3) for name, value in seconds.items()},
            "pictures": self.scorer.drawn,
            "pictures_reused": self.scorer.reused,
        }
        if seconds["render"]:
            row["pictures_per_second"] = round(self.scorer.drawn / seconds["render"], 3)
        return row

    def _look_back(self, samples: Sequence[PpoSample]) -> tuple[list[SampleTokens], dict[str, float]]:
        """What the policy, its reference and the critic thought of the samples' tokens, the advantages that
        follow, and figures of it."""
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        entropy: list[Tensor] = []
        for part in self._passes(range(len(samples)), samples):
            some = [samples[i] for i in part]
            with torch.no_grad():
                now = tokens_of(self.model, some, pivots_of(self.model, some), self.config.temperature)
                first = tokens_of(self.model, some, self._warm(some), self.config.temperature)
                values = self.critic(now.states)
            parts = [tensor.split(now.lengths) for tensor in (now.logps, first.logps, values)]
            found |= dict(zip(part, zip(*parts, strict=True), strict=True))
            entropy.append(now.entropy)
        logps, reference, values = (list(rows) for rows in zip(*(found[i] for i in range(len(samples)))))
        lengths = [len(row) for row in values]
        padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # (B, T)
        mask = torch.arange(padded.shape[1], device=padded.device) < padded.new_tensor(lengths)[:, None]
        gains = padded.new_tensor([sample.gain for sample in samples])
        if self.config.group_baseline:
            prompts = torch.tensor([sample.own.position for sample in samples], device=gains.device)
            gains = leave_one_out(gains, prompts)
        advantages, returns = gae(gains, padded, mask, self.config.gae_lambda)
        flat, earned = advantages[mask], returns[mask]
        if self.config.whiten:
            flat = whiten(flat)
        pasts = [
            SampleTokens(*row)
            for row in zip(logps, reference, values, flat.split(lengths), earned.split(lengths), strict=True)
        ]
        said, drawn = torch.cat(logps), padded.new_tensor([p for one in samples for p in one.written.logps])
        left = (earned - torch.cat(values)).var(correction=0) / earned.var(correction=0).clamp_min(1e-12)
        return pasts, {
            "kl": kl_k3(said, torch.cat(reference)).mean().item(),
            "entropy": torch.cat(entropy).mean().item(),
            # From the distribution that was drawn from: rounding alone, which half precision has more of.
            "sampler_off": ((said - drawn).exp() - 1).abs().max().item(),
            "explained": 1 - left.item(),  # of the variance of returns, by the critic
        }

    def _learn(self, step: int, rows: Sequence[tuple[PpoSample, SampleTokens]]) -> dict[str, float]:
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
                for part in self._passes(chosen, [sample for sample, _ in rows]):
                    loss, found = self._loss([rows[i] for i in part], count, len(chosen))
                    check_loss(loss, step, self.folder)
                    loss.backward()
                    if not norms:
                        off = max(off, found["off"])
                    for name, value in found.items():
                        totals[name] = totals.get(name, 0.0) + value
                norms.append(self._update(step))
        tokens, drift = totals.pop("tokens"), totals.pop("drift") / totals.pop("rows")
        del totals["off"]
        grads = zip(("grad_norm", "critic_grad_norm"), map(_mean, zip(*norms)))
        return {
            **{name: value / tokens for name, value in totals.items()},
            "ratio_off": off,
            "drift": drift,
            **dict(grads),
        }

    def _loss(
        self, rows: Sequence[tuple[PpoSample, SampleTokens]], count: int, of: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The share of some rows in the loss of a minibatch of `count` tokens in `of` rows, and sums."""
        config, samples = self.config, [sample for sample, _ in rows]
        old, reference, values, advantages, returns = (
            torch.cat([getattr(past, name) for _, past in rows]) for name in SampleTokens.__dataclass_fields__
        )
        pivots = pivots_of(self.model, samples)
        now = tokens_of(self.model, samples, pivots, config.temperature)
        policy, ratios = clipped_surrogate(now.logps, old, advantages, config.clip)
        away = kl_k3(now.logps, reference)
        errors = clipped_value_error(self.critic(now.states), values, returns, config.value_clip)
        drift = pivot_error(pivots, self._warm(samples))
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

    def _update(self, step: int) -> list[float]:
        """One optimiser step; the gradients' norms."""
        most = self.config.max_grad_norm
        norms = [clip_gradient(some, most, step, self.folder) for some in self.groups.values()]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def _passes(self, chosen: Sequence[int], samples: Sequence[PpoSample]) -> Iterator[list[int]]:
        """The chosen samples, `batch_size` at a time, those of like lengths together."""
        order = sorted(chosen, key=lambda i: (len(samples[i].own.begun) + len(samples[i].written.ids), i))
        for start in range(0, len(order), self.config.batch_size):
            yield order[start : start + self.config.batch_size]

    def _warm(self, samples: Sequence[PpoSample]) -> Tensor:
        return self.warm.of([sample.own.asked.prompt for sample in samples], self.model.device)

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        if not self.sets:
            return None
        figures, samples = evaluate(self.rollouts, self.sets, unchanged=step == 0)
        gained = sum(self.recent) / len(self.recent) if self.recent else None
        self.recent = []
        return figures, {"training_reward": gained, "samples": samples}

    def record_evaluation(self, row: Figures, figures: dict[str, float]) -> bool:
        patience = self.config.patience if self.config.held_out else 0
        return record_evaluation(
            self.folder, row, *self.watched, patience, lambda: self.write(self.folder / "best"), self.log
        )

    # What is stored

    def tensors(self) -> dict[str, dict[str, Any]]:
        return dict(self.groups)

    def state(self) -> dict[str, Any]:
        return {
            "position": self.rollouts.stream.position,
            "recent": self.recent,
            "kl": self.kl,
            "stopped": self.stopped,
            "norms": {name: norm.state() for name, norm in self.rollouts.norms.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.rollouts.stream.position, self.recent = state["position"], state["recent"]
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
