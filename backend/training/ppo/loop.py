"""The loop of PPO: roll out, look back, learn, a few times over.

A step: the policy writes, both sides are drawn and judged (`ppo_rollouts`); one pass over what was written,
without gradients, says what the policy, its reference and the critic thought of it; advantages follow; then
some epochs of minibatches. All that is random in a step is a matter of (seed, step), so a stopped run knows
where it was from what its checkpoint holds. The model stays in eval mode: dropout would train another policy
than the one that wrote.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...factory import open_renderer, open_reward
from ...reports.training import write_report
from ...rewards.scales import RunningNorm
from ...rewriters.prip.model import Prip
from ...rewriters.prip.rewriter import EMBEDDED_REFINER, PripRewriter, RefinerSettings
from ...rewriters.reprompt import SETTINGS, read_settings
from ...storage.cache import Cache
from ..common import distributed
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
from ..common.run_folder import append_lines, drop_later_lines, newest_checkpoint, step_of, write_folder
from ..common.steps import (
    check_gradient,
    check_loss,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
    save_error,
)
from ..rollouts.evaluation import evaluate, evaluation_prompts, record_evaluation, selection_metric
from ..rollouts.prompts import PromptStream, TrainingPrompt, read_prompts
from ..rollouts.scoring import PictureScorer
from .config import PpoConfig
from .policy import ValueHead, WarmPivots, pivots_of, tokens_of
from .rollouts import PpoRollouts, PpoSample, lines_of

if TYPE_CHECKING:
    from torch.nn import Parameter


LINES = ("metrics.jsonl", "evaluations.jsonl", "rollouts/rollouts.jsonl")  # of steps; cut when resuming
PICTURES = "rollouts/pictures"
GROUPS = ("encoder", "critic")


@dataclass
class SampleTokens:
    """A sample's tokens as they were seen before the step's first update, (T,) each."""

    logps: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PpoLoop:
    """One run. Everything that is loaded is loaded here; `run` trains and exports."""

    def __init__(self, config: PpoConfig, run: Path, resume: bool, log: Callable[[str], None]):
        from transformers import set_seed

        self.config, self.folder, self.log = config, run, log
        self.checkpoint = newest_checkpoint(run / "checkpoints") if resume else None
        for name in LINES:
            # From the start, the evaluation before the first step is made again, too.
            drop_later_lines(run / name, step_of(self.checkpoint) if self.checkpoint else -1)
        gpu = distributed.use_gpu(config.device)
        set_seed(config.seed)
        self._load(gpu)
        prompts = read_prompts(config.prompts, "train", config.seed)
        self.sets = evaluation_prompts(prompts, config.eval_prompts)
        for asked in (prompts, *self.sets.values()):
            self.rewriter.encode_prompts([one.prompt for one in asked])  # raises for those it has no room for
        rewards = {name: open_reward(name) for name in (*config.rewards, *config.held_out)}
        looking = {name: reward for name, reward in rewards.items() if reward.spec.reads == "images"}
        renderer = open_renderer(config.renderer)
        self.timer = StageTimer(
            "cuda" if gpu else "cpu", self._movers(renderer, looking) if config.offload and gpu else None
        )
        cache = Cache(run / PICTURES, int(config.keep_gb * 2**30))
        self.scorer = PictureScorer(
            renderer, looking, cache, self.timer, config.renderer.batch, overlap=config.renderer.elsewhere
        )
        self.rollouts = PpoRollouts(
            self.rewriter,
            self.scorer,
            {n: r for n, r in rewards.items() if n not in looking},
            {n: r.spec for n, r in rewards.items()},
            PromptStream(prompts, config.seed),
            config,
            self.timer,
        )
        self.watched = selection_metric(config.held_out, config.rewards, looking)
        self.warm = WarmPivots(run / "warm", [one.prompt for one in self._taken(prompts)], self.rewriter)
        self.kl, self.stopped = config.kl, False
        self.recent: list[float] = []  # gains since the last evaluation
        self.rate = self._rate()
        self.done = self._restore()
        log(
            f"{len(prompts)} prompts; "
            + (f"going on from {self.checkpoint.name}" if self.checkpoint else "from the start")
        )

    def run(self) -> Path:
        from torch.utils.tensorboard import SummaryWriter

        config, final = self.config, self.folder / "final"
        stopped = self._evaluate(0) if self.done == 0 else self.stopped
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done + 1) as board:
            for step in range(self.done + 1, config.max_steps + 1):
                if stopped:
                    break
                row = self.step(step)
                append_lines(self.folder / LINES[0], [json.dumps(row)])
                for name, value in row.items():
                    board.add_scalar(name, value, step)
                self.log(_said(row, config.max_steps))
                last = step == config.max_steps
                if last or step % config.eval_every == 0:
                    stopped = self._evaluate(step)
                if last or stopped or step % config.save_every == 0:
                    self._save(step, stopped)
                write_report(self.folder)
        self._export(final)
        write_report(self.folder, finished=True)
        self.log(f"saved {final}; as models/reprise/refiners/NAME nodes and --rewriter prip:NAME know it")
        return final

    # What the run is made of

    def _load(self, gpu: bool) -> None:
        """The refiner, of which the encoder alone learns, and the critic, with their optimiser."""
        config = self.config
        self.start = EMBEDDED_REFINER if config.init == "shapeworld" else Path(config.init).expanduser()
        half = config.dtype == "bfloat16" or config.dtype == "auto" and gpu and torch.cuda.is_bf16_supported()
        self.model = Prip.from_pretrained(
            self.start,
            device="cuda" if gpu else "cpu",
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
        self.weights: dict[str, dict[str, Parameter]] = {
            name: dict(module.named_parameters())
            for name, module in zip(GROUPS, (self.model.encoder, self.critic), strict=True)
        }
        rates = (config.learning_rate, config.critic_learning_rate)
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.weights[name].values()), "lr": rate} for name, rate in zip(GROUPS, rates)],
            weight_decay=config.weight_decay,
        )

    def _movers(self, renderer: Any, rewards: dict[str, Any]) -> dict[str, Callable[[str], None]]:
        refiner = modules_mover(lambda: [self.model, self.critic], lambda: self.optimizer)
        judging = modules_mover(lambda: judge_modules(rewards.values()))
        # While someone else draws, the judges are at work.
        elsewhere = self.config.renderer.elsewhere
        drawing = judging if elsewhere else modules_mover(lambda: renderer_modules(renderer))
        return {"write": refiner, "update": refiner, "render": drawing, "score": judging}

    def _taken(self, prompts: Sequence[TrainingPrompt]) -> list[TrainingPrompt]:
        """Those of the prompts that a run of this length comes to."""
        count = min(len(prompts), self.config.max_steps * self.config.prompts_per_step)
        return [asked for _, asked in PromptStream(prompts, self.config.seed).take(count)]

    def _rate(self) -> Callable[[int], list[float]]:
        """The groups' learning rates before each step, by the steps done."""
        peaks = [group["lr"] for group in self.optimizer.param_groups]
        factor = learning_rate_factor(self.config, self.optimizer)
        return lambda done: [peak * factor(done) for peak in peaks]

    # What happens in a step

    def step(self, step: int) -> dict[str, Any]:
        """Take a step, and say what is to be logged of it."""
        config, begun = self.config, time.perf_counter()
        seconds = self.timer.seconds
        seconds.update(dict.fromkeys(seconds, 0.0))
        self.scorer.drawn = self.scorer.reused = 0
        batch = self.rollouts.collect()
        with self.timer("update"):
            pasts, figures = self._look_back(batch.valid)
        for sample, past in zip(batch.valid, pasts, strict=True):
            sample.advantage = past.advantages.mean().item()
        append_lines(self.folder / LINES[2], lines_of(step, batch))
        for group, rate in zip(self.optimizer.param_groups, self.rate(step - 1)):
            group["lr"] = rate
        with self.timer("update"):
            figures |= self._learn(step, list(zip(batch.valid, pasts, strict=True)))
        figures |= {"kl_weight": self.kl, "learning_rate": self.rate(step - 1)[0]}
        if config.kl_target is not None:
            self.kl = adapted(self.kl, figures["kl"], config.kl_target)
        self.recent.append(batch.figures["gain"])
        took = time.perf_counter() - begun
        row = {
            "step": step,
            **figures,
            **batch.figures,
            **{f"seconds/{name}": round(value, 3) for name, value in seconds.items()},
            "seconds": round(took, 3),
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
        norms: list[float] = []
        for name in GROUPS:
            norm = torch.nn.utils.clip_grad_norm_(self.weights[name].values(), self.config.max_grad_norm)
            norms.append(float(norm))
        for norm in norms:
            check_gradient(norm, step, self.folder)
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

    def _evaluate(self, step: int) -> bool:
        """Evaluate, keep the best weights; whether training should stop."""
        if not self.sets:
            return False
        begun = time.perf_counter()
        figures, samples = evaluate(self.rollouts, self.sets, unchanged=step == 0)
        gained = sum(self.recent) / len(self.recent) if self.recent else None
        row = {
            "step": step,
            "training_reward": gained,
            "seconds": round(time.perf_counter() - begun, 2),
            **figures,
            "samples": samples,
        }
        self.recent = []
        patience = self.config.patience if self.config.held_out else 0
        return record_evaluation(
            self.folder, row, *self.watched, patience, lambda: self._export(self.folder / "best"), self.log
        )

    # What is kept

    def _save(self, step: int, stopped: bool = False) -> None:
        state = {
            "position": self.rollouts.stream.position,
            "recent": self.recent,
            "kl": self.kl,
            "stopped": stopped,
            "norms": {name: norm.state() for name, norm in self.rollouts.norms.items()},
        }
        save_checkpoint(self.folder, step, self.weights, self.optimizer, self._names(), state)

    def _restore(self) -> int:
        """Take all that the checkpoint holds; the steps behind it."""
        if self.checkpoint is None:
            return 0
        device = str(self.model.device)
        known = load_checkpoint(self.checkpoint, self.weights, self.optimizer, self._names(), device)
        self.rollouts.stream.position, self.recent = known["position"], known["recent"]
        self.kl, self.stopped = known["kl"], known["stopped"]
        self.rollouts.norms = {name: RunningNorm.restored(norm) for name, norm in known["norms"].items()}
        return step_of(self.checkpoint)

    def _names(self) -> list[str]:
        """Of the weights, in the optimiser's order."""
        return [f"{group}.{name}" for group in GROUPS for name in self.weights[group]]

    def _export(self, folder: Path) -> None:
        """Write a refiner's folder: the encoder, and all else as it was at the start, whatever precision it
        worked in; no critic."""
        config, start = self.config, self.start
        settings = {
            **self.settings.model_dump(exclude_none=True),
            "trainer": "ppo",
            "max_new_tokens": self.rewriter.max_new_tokens,
        }
        try:
            whole = config.export_dtype == "same"
            model = self.model if whole else Prip.from_pretrained(start, dtype="float32")
            if not whole:
                model.encoder.load_state_dict(self.model.encoder.state_dict())
                model.to(getattr(torch, config.export_dtype))
            with write_folder(folder) as part:
                model.save_pretrained(part, settings=settings, frozen=start if whole else None)
                if (start / "image").is_dir():
                    shutil.copytree(start / "image", part / "image")
        except Exception as error:  # safetensors and the file system raise their own kinds
            raise save_error(folder, self.folder, error) from error


def adapted(weight: float, kl: float, target: float) -> float:
    """The weight of the KL after a step whose KL was `kl`.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, with K = 0.1, and the KL per token.
    """
    return weight * (1 + 0.1 * min(0.2, max(-0.2, kl / target - 1)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _said(row: dict[str, Any], steps: int) -> str:
    return (
        f"step {row['step']}/{steps} gain {row['gain']:+.4f} better {row['better']:.2f} "
        f"kl {row['kl']:.4f} ratio {row['ratio']:.4f} drift {row['drift']:.4f} "
        f"{row['seconds']:.1f} s"
    )
