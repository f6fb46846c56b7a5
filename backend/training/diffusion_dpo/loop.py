"""The loop of Diffusion-DPO, on peft.

A step's pairs, their noise and their times are a matter of (seed, place in the run): a stopped run knows
where it was from the number of steps alone, and 8 pairs at once are the 8 pairs of one after the other.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput, Unsupported
from ...core.registry import RENDERERS, resolve
from ...core.seeds import seed_of, shuffled_indices
from ...factory import open_reward
from ...preferences.store import Pair, Store
from ...renderers.diffusers import lora as files
from ...renderers.diffusers.checkpoints import find_pipeline, load_pipeline, read_index
from ...renderers.diffusers.devices import choose_device, choose_training_dtype
from ...renderers.diffusers.families import Family, family_of
from ...reports.training import write_report
from ...rewards.base import LearnedJudge
from ..common.losses import denoising_error, denoising_target, diffusion_dpo, noised, predicted_clean
from ..common.pairs import keep_pairs_of_run, pairs_of_run, usable_pairs
from ..common.run_folder import append_lines, drop_later_lines, newest_checkpoint, step_of, write_folder
from ..common.steps import (
    apply_gradient,
    check_loss,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
    save_error,
    set_learning_rate,
)
from .config import DiffusionDpoConfig, JudgeGradient
from .denoisers import Denoiser, noising_of, stacked
from .guidance import Guide, clear_enough, importance
from .pairs import TEXT, Encoded, check_size

if TYPE_CHECKING:
    from torch import Tensor


LINES = ("metrics.jsonl", "evaluations.jsonl")
LOOKS = 4  # times at which a held-out pair is evaluated
BETA = {"epsilon": 5000.0, "v_prediction": 5000.0, "flow": 100.0}
TARGETS = {"attention": files.ATTENTION, "blocks": files.BLOCKS}


class DiffusionDpoLoop:
    """One run. Everything that is loaded is loaded here; `run` trains and exports."""

    def __init__(
        self,
        config: DiffusionDpoConfig,
        run: Path,
        resume: bool,
        log: Callable[[str], None],
        of_rounds: bool = False,
    ):
        """With `of_rounds` it is a round, whose pairs nobody chose: too few to hold some out are all trained
        on."""
        import torch
        from transformers import set_seed

        self.config, self.folder, self.log = config, run, log
        self.checkpoint = newest_checkpoint(run / "checkpoints") if resume else None
        for name in LINES:
            # From the start, the evaluation before the first step is made again, too.
            drop_later_lines(run / name, step_of(self.checkpoint) if self.checkpoint else -1)
        assert config.preferences is not None, "with rounds each has its own"
        store = Store(config.preferences)
        pairs = pairs_of_run(run, store.all_pairs()) if resume else None
        if pairs is None:
            pairs = usable_pairs(store, config.reward, config.margin, log)
        self.pairs, self.held_out = split(pairs, config.eval_share)
        if not self.pairs:
            prompts = len({pair.prompt for pair in pairs})
            said = f"eval_share={config.eval_share:g} of {prompts} prompts leaves none to train on"
            if not of_rounds:
                raise BadInput(f"{said}; lower it")
            log(f"{said}: nothing is held out")
            self.pairs, self.held_out = pairs, []

        self.device = device = choose_device(config.device)
        self.dtype = getattr(torch, choose_training_dtype(config.dtype, device))
        folder, length, self.family = trainable(config.model)
        # Pictures are encoded and decoded in float32: some VAEs overflow in half precision.
        self.pipeline = load_pipeline(folder, self.dtype, {"vae": torch.float32})
        length = config.max_sequence_length or (length if self.family.has_text_length else None)
        check_text_length(config, self.family)
        self.encoded = Encoded(store, self.pipeline, self.family, config.size, length)
        self.guide: Guide | None = None
        shape = self._encode(pairs, device)
        self.noising = noising_of(self.pipeline, shape, config.shift)
        self.beta = config.beta or BETA[self.noising.prediction]

        set_seed(config.seed)
        start = start_of(config, getattr(self.pipeline, self.family.denoiser))
        self.model = self._adapted().to(device)
        self.denoiser = Denoiser(self.pipeline, self.family, self.model, config.guidance)
        self.weights = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self.first = self._begun(start)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), config.learning_rate, weight_decay=config.weight_decay
        )
        factor = learning_rate_factor(config, self.optimizer)
        self.rate = lambda done: config.learning_rate * factor(done)
        self.importance = importance(self.pairs, config.weigh_by)
        self.done = self._restore()
        log(
            f"{len(self.pairs)} pairs of {len({pair.prompt for pair in self.pairs})} prompts, "
            f"{len(self.held_out)} held out; {self.noising.prediction}, beta {self.beta:g}; "
            + (f"going on from {self.checkpoint.name}" if self.checkpoint else "from the start")
        )

    def run(self) -> Path:
        if self.done == 0:
            keep_pairs_of_run(self.folder, [*self.pairs, *self.held_out])
            self._evaluate(0)
        for step in range(self.done + 1, self.config.max_steps + 1):
            row = self._step(step)
            append_lines(self.folder / LINES[0], [json.dumps(row)])
            self.log(_said(row, self.config.max_steps))
            last = step == self.config.max_steps
            if last or step % self.config.eval_every == 0:
                self._evaluate(step)
            if last or step % self.config.save_every == 0:
                self._save(step)
            if last or step % 10 == 0:
                write_report(self.folder, finished=last)
        final = self._export()
        self.log(f"saved {final}; copy its file into ComfyUI's models/loras")
        return final

    # What the run is made of

    def _encode(self, pairs: Sequence[Pair], device: Any) -> tuple[int, int]:
        """Encode what no run has encoded yet, let go of the encoders; the latents' one (h, w)."""
        pipe, missing = self.pipeline, self.encoded.missing(pairs)
        if missing:
            self.log(f"encoding {missing} pictures and prompts")
            denoiser = getattr(pipe, self.family.denoiser)
            setattr(pipe, self.family.denoiser, None)  # it waits in main memory
            for name in TEXT:
                if getattr(pipe, name, None) is not None:
                    getattr(pipe, name).to(device)
            pipe.vae.to(device)
            self.encoded.prepare(pairs)
            setattr(pipe, self.family.denoiser, denoiser)
        if self.config.judge is not None:
            self.guide = self._guide(self.config.judge, pairs, device)
        for name in ("vae", *TEXT):
            if getattr(pipe, name, None) is not None:
                setattr(pipe, name, None)
        images = {side.image for pair in pairs for side in (pair.chosen, pair.rejected)}
        shapes = {
            (high, wide) for image in sorted(images) for _, high, wide in [self.encoded.latent(image).shape]
        }
        if len(shapes) > 1:
            scale = pipe.vae_scale_factor
            sides = ", ".join(f"{wide * scale} x {high * scale}" for high, wide in sorted(shapes)[:4])
            raise BadInput(f"the pictures have several sizes ({sides}, …); set size to train on one")
        return shapes.pop()

    def _guide(self, settings: JudgeGradient, pairs: Sequence[Pair], device: Any) -> Guide:
        judge = open_reward(settings.reward, self.config.device)
        if isinstance(judge, LearnedJudge):
            judge.model.to(device)
        vae = self.pipeline.vae.requires_grad_(False).to(device)
        return Guide(settings, vae, judge, self.encoded.picture(pairs[0].chosen.image))

    def _adapted(self) -> Any:
        """The denoiser, frozen, with a new adapter in float32."""
        from peft import LoraConfig, get_peft_model

        denoiser = getattr(self.pipeline, self.family.denoiser).requires_grad_(False)
        if self.config.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        lora = self.config.lora
        # peft's alpha is declared a whole number, and is any.
        alpha: Any = lora.alpha
        settings = LoraConfig(r=lora.r, lora_alpha=alpha, target_modules=TARGETS[lora.targets])
        # In eval mode: without its adapter it is the reference, and nothing in that may be random.
        return get_peft_model(denoiser, settings).eval()

    def _begun(self, start: files.Adapter | None) -> dict[str, Tensor] | None:
        """Put the adapter to go on from into the new one; a copy, which stays the reference."""
        import torch

        if start is None:
            return None
        with torch.no_grad():
            for name, one in self.weights.items():
                module = name.removeprefix("base_model.model.").partition(".lora_")[0]
                a, b = start[module]
                one.copy_(a if ".lora_A." in name else b * (self.config.lora.r / self.config.lora.alpha))
        return {name: one.detach().clone() for name, one in self.weights.items()}

    @contextmanager
    def _reference(self) -> Iterator[None]:
        """The model as it was before the first step: without its adapter, or with that of `start`."""
        if self.first is None:
            with self.model.disable_adapter():
                yield
            return
        now = {name: one.data for name, one in self.weights.items()}
        try:
            for name, one in self.weights.items():
                one.data = self.first[name]
            yield
        finally:
            for name, one in self.weights.items():
                one.data = now[name]

    # What happens in a step

    def _step(self, step: int) -> dict[str, Any]:
        config, start = self.config, time.perf_counter()
        set_learning_rate(self.optimizer, self.rate(step - 1))
        figures: list[dict[str, float]] = []
        each = config.batch_size
        first = (step - 1) * each * config.accumulation
        for number in range(config.accumulation):
            places = range(first + number * each, first + (number + 1) * each)
            pairs = [self.pairs[i] for i in shuffled_indices(len(self.pairs), config.seed, places)]
            losses, found = self._losses(pairs, *self._noise(places))
            loss = losses.mean()
            check_loss(loss, step, self.folder)
            (loss / config.accumulation).backward()
            figures.append(found)
        norm = apply_gradient(self.weights, self.optimizer, config.max_grad_norm, step, self.folder)
        names = dict.fromkeys(name for one in figures for name in one)
        means = {name: mean(one[name] for one in figures if name in one) for name in names}
        return {
            "step": step,
            **means,
            "grad_norm": norm,
            "learning_rate": self.rate(step - 1),
            "seconds": round(time.perf_counter() - start, 3),
        }

    def _losses(self, pairs: Sequence[Pair], noise: Tensor, u: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Losses (B,) of pairs, each at its noise (B, C, h, w) and share of the way u (B,), and figures."""
        import torch

        device = self.device
        latents = [self.encoded.latent(pair.chosen.image) for pair in pairs]
        latents += [self.encoded.latent(pair.rejected.image) for pair in pairs]
        clean = torch.stack(latents).to(device)  # (2B, C, h, w): the better ones, then the worse ones
        noise = torch.cat([noise, noise]).to(device)
        signal, sigma, times = (value.to(device) for value in self.noising.at(torch.cat([u, u])))
        rows = [self.encoded.condition(pair.condition) for pair in pairs]
        conditions = stacked(rows + rows, device, self.dtype)
        noisy = noised(clean, noise, signal, sigma).to(self.dtype)
        target = denoising_target(self.noising.prediction, clean, noise, signal, sigma)

        def said() -> Tensor:
            # The adapter is float32 beside weights in bfloat16.
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                return self.denoiser(noisy, times, conditions)

        with torch.no_grad(), self._reference():
            reference = denoising_error(said(), target)
        output = said()
        model = denoising_error(output, target)
        (chosen, rejected), (ref_chosen, ref_rejected) = model.chunk(2), reference.chunk(2)
        losses, margins = diffusion_dpo(chosen, rejected, ref_chosen, ref_rejected, self.beta)
        figures = {
            "loss": losses.mean().item(),
            "accuracy": (margins > 0).float().mean().item(),
            "margin": margins.mean().item(),
            # How the errors changed: the better one's should fall. Where both rise, pictures get worse.
            "chosen": (chosen - ref_chosen).mean().item(),
            "rejected": (rejected - ref_rejected).mean().item(),
        }
        if torch.is_grad_enabled():  # an evaluation is not guided
            if self.importance:
                losses = losses * losses.new_tensor([self.importance[pair.id] for pair in pairs])
            if self.guide is not None:
                # The better pictures, where they are clear enough.
                both = signal[: len(pairs)], sigma[: len(pairs)]
                clear = clear_enough(*both, self.guide.settings.until)
                if len(clear):
                    predicted = predicted_clean(
                        self.noising.prediction,
                        noisy[clear].float(),
                        output[clear].float(),
                        signal[clear],
                        sigma[clear],
                    )
                    scores = self.guide(predicted, [pairs[i].prompt for i in clear.tolist()])
                    losses = losses.index_add(0, clear, scores.to(losses), alpha=-self.guide.settings.weight)
                    figures["judge"] = scores.mean().item()
        return losses, figures

    def _noise(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Noise and times of the pairs at these places of the run."""
        import torch

        shape = self.encoded.latent(self.pairs[0].chosen.image).shape
        noises, shares = [], []
        for place in places:
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, "noise", place))
            noises.append(torch.randn(shape, generator=generator))
            if self.config.times == "logit_normal":
                shares.append(torch.sigmoid(torch.randn((), generator=generator)))
            else:
                shares.append(torch.rand((), generator=generator))
        return torch.stack(noises), torch.stack(shares)

    def _evaluate(self, step: int) -> None:
        """The held-out pairs, each at the same few times and noises in every run."""
        import torch

        if not self.held_out:
            return
        start, figures = time.perf_counter(), []
        looks = [(pair, look) for pair in self.held_out for look in range(LOOKS)]
        shape = self.encoded.latent(self.held_out[0].chosen.image).shape
        for begin in range(0, len(looks), self.config.batch_size):
            part = looks[begin : begin + self.config.batch_size]
            seeds = [seed_of("evaluate", pair.id, look) for pair, look in part]
            noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            shares = torch.tensor([(look + 0.5) / LOOKS for _, look in part])
            with torch.no_grad():
                _, found = self._losses([pair for pair, _ in part], torch.stack(noise), shares)
            figures += [found] * len(part)
        means = {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}
        row = {
            "step": step,
            **{f"held-out/{name}": value for name, value in means.items()},
            "seconds": round(time.perf_counter() - start, 2),
            "samples": [],
        }
        append_lines(self.folder / LINES[1], [json.dumps(row)])
        self.log(f"evaluation at step {step}: loss {means['loss']:.4f} right {means['accuracy']:.3f}")

    # What is kept

    def _save(self, step: int) -> None:
        files = {"adapter": self.weights}
        save_checkpoint(self.folder, step, files, self.optimizer, list(self.weights))

    def _restore(self) -> int:
        """Take the checkpoint's weights and optimiser; the steps behind it."""
        if self.checkpoint is not None:
            device = str(self.device)
            files = {"adapter": self.weights}
            load_checkpoint(self.checkpoint, files, self.optimizer, list(self.weights), device)
        return step_of(self.checkpoint)

    def _export(self) -> Path:
        from peft import get_peft_model_state_dict

        config, final = self.config, self.folder / "final"
        halves = get_peft_model_state_dict(self.model)
        modules = [key.removesuffix(".lora_A.weight") for key in halves if key.endswith(".lora_A.weight")]
        adapter = {
            name.removeprefix("base_model.model."): (
                halves[f"{name}.lora_A.weight"],
                halves[f"{name}.lora_B.weight"],
            )
            for name in modules
        }
        notes = {
            "format": 1,
            "role": "lora",
            "trainer": "diffusion-dpo",
            "family": self.family.name,
            "model": config.model,
            "beta": self.beta,
            "steps": config.max_steps,
            "pairs": len(self.pairs),
            "rank": config.lora.r,
        }
        try:
            with write_folder(final) as folder:
                tensors = files.lora_tensors(self.family, adapter, config.lora.alpha / config.lora.r)
                files.save_lora(folder, self.family, tensors, notes, config.export_dtype)
                (folder / "reprise.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
        except Exception as error:
            raise save_error(final, self.folder, error) from error
        return final


def _said(row: dict[str, Any], steps: int) -> str:
    return (
        f"step {row['step']}/{steps} loss {row['loss']:.4f} right {row['accuracy']:.2f} "
        f"better {row['chosen']:+.5f} worse {row['rejected']:+.5f} {row['seconds']:.1f} s"
    )


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out): whole prompts, by their words alone."""
    prompts = sorted({pair.prompt for pair in pairs}, key=lambda prompt: seed_of("held out", prompt))
    aside = set(prompts[: math.ceil(share * len(prompts))])
    training = [pair for pair in pairs if pair.prompt not in aside]
    return training, [pair for pair in pairs if pair.prompt in aside]


def check_possible(config: DiffusionDpoConfig, pipeline: Any, family: Family, side: int) -> None:
    """What a run would refuse of its settings once there are pictures of `side`. Raises as the loop does."""
    check_text_length(config, family)
    if config.size is not None:
        check_size(config.size, family.multiple(pipeline))
    latent = (config.size or side) // pipeline.vae_scale_factor
    noising_of(pipeline, (latent, latent), config.shift)
    denoiser = getattr(pipeline, family.denoiser)
    Denoiser(pipeline, family, denoiser, config.guidance)
    start_of(config, denoiser)


def check_text_length(config: DiffusionDpoConfig, family: Family) -> None:
    if config.max_sequence_length and not family.has_text_length:
        raise Unsupported(f"{family.name} has a fixed text length; leave max_sequence_length out")


def start_of(config: DiffusionDpoConfig, denoiser: Any) -> files.Adapter | None:
    """The adapter to go on from. Raises BadInput for one of another rank or on other modules."""
    if config.start is None:
        return None
    found = files.read_lora(config.start, denoiser)
    modules = {
        name for name, _ in denoiser.named_modules() if re.fullmatch(TARGETS[config.lora.targets], name)
    }
    sizes = {len(a) for a, _ in found.values()}
    if found.keys() != modules or sizes != {config.lora.r}:
        raise BadInput(
            f"{config.start} is an adapter of rank {max(sizes)} on {len(found)} modules, and lora asks "
            f"for rank {config.lora.r} on {len(modules)}; set lora.r and lora.targets as they were"
        )
    return found


def trainable(model: str) -> tuple[Path, int | None, Family]:
    """The folder of a renderer, the length of text that an embedded one was trained with, and its family.
    Raises Unsupported for a family that no adapter is known for."""
    folder, length = _where(model)
    family = family_of(read_index(folder)["_class_name"])
    files.check_layout(family)
    return folder, length, family


def _where(model: str) -> tuple[Path, int | None]:
    if model in RENDERERS:
        made = resolve("renderer", RENDERERS, model)
        folder = signature(made).parameters.get("folder")
        if folder is None:
            raise BadInput(f"the renderer {model!r} has no weights of its own; give a diffusers folder")
        return Path(folder.default), getattr(made, "TEXT_LENGTH", None)
    return find_pipeline(model), None
