"""The loop of Diffusion-DPO, on peft.

8 pairs in one batch are the 8 pairs of one batch after the other: a pair's noise and its time follow from
(seed, place in the run) alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ...core.errors import BadInput
from ...core.seeds import seed_of
from ...factory import open_reward
from ...preferences.store import Pair, Store
from ...renderers.diffusers import lora as files
from ...renderers.diffusers.devices import choose_device, choose_training_dtype
from ..common.data import batches_of_step, nothing_left, split_by_prompt
from ..common.losses import denoising_error, denoising_target, diffusion_dpo, noised, predicted_clean
from ..common.pairs import keep_pairs_of_run, pairs_of_run, usable_pairs
from ..common.step_loop import Figures, StepLoop
from .config import DiffusionDpoConfig, JudgeGradient
from .denoisers import Denoiser, FlowDenoiser, Noising, guidance_of, noising_of
from .guidance import Guide, clear_enough, importance
from .own_call import Waiting
from .pairs import TEXT, Encoded
from .start import TARGETS, check_text_length, start_of, trainable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LOOKS = 4  # times at which a held-out pair is evaluated
BETA = {"epsilon": 5000.0, "v_prediction": 5000.0, "flow": 100.0}


class DiffusionDpoLoop(StepLoop):
    """One run."""

    config: DiffusionDpoConfig
    usage = "copy its file into ComfyUI's models/loras"

    def __init__(
        self,
        config: DiffusionDpoConfig,
        run: Path,
        resume: bool,
        log: Callable[[str], None],
        of_rounds: bool = False,
    ):
        """With `of_rounds` it is one round, which trains on all its pairs where too few are left
        to train on."""
        self.of_rounds = of_rounds
        super().__init__(config, run, resume, log)

    def choose_device(self) -> torch.device:
        return choose_device(self.config.device)

    def load(self) -> None:
        import torch
        from transformers import set_seed

        config = self.config
        assert config.preferences is not None, "with rounds each has its own"
        store = Store(config.preferences)
        pairs = self._pairs(store)
        self.dtype = getattr(torch, choose_training_dtype(config.dtype, self.device))
        source, length, self.family = trainable(config)
        # Pictures are encoded and decoded in float32: some VAEs overflow in half precision.
        self.pipeline, _ = source.load(self.dtype, {"vae": torch.float32})
        length = config.max_sequence_length or (length if self.family.has_text_length else None)
        check_text_length(config, self.family)
        self.encoded = Encoded(store, self.pipeline, self.family, config.size, length)
        self.guide: Guide | None = None
        self.shape = self._encode(pairs)
        self.noising = self._noising()
        self.beta = config.beta or BETA[self.noising.prediction]

        set_seed(config.seed)  # again, whatever was encoded: of the adapter's first weights
        start = start_of(config, getattr(self.pipeline, self.family.denoiser))
        self.model = self._adapted().to(self.device)
        self.denoiser = self._denoiser()
        self.weights = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        self.reference = self._copied(start)
        self.importance = importance(self.pairs, config.weigh_by)

    def _pairs(self, store: Store) -> list[Pair]:
        """All pairs, which are split into `pairs`, to train on, and `held_out`."""
        config = self.config
        pairs = pairs_of_run(self.folder, store.all_pairs())
        if pairs is None:
            pairs = usable_pairs(store, config.reward, config.margin, self.log)
        self.pairs, self.held_out = split_by_prompt(pairs, config.eval_share)
        if not self.pairs:
            if not self.of_rounds:
                raise nothing_left(pairs, config.eval_share)
            prompts = len({pair.prompt for pair in pairs})
            self.log(
                f"eval_share={config.eval_share:g} of {prompts} prompts leaves none to train on: "
                "nothing is held out"
            )
            self.pairs, self.held_out = pairs, []
        return pairs

    def prepare(self) -> None:
        if self.checkpoint is None:
            keep_pairs_of_run(self.folder, [*self.pairs, *self.held_out])

    def summary(self) -> str:
        prompts = len({pair.prompt for pair in self.pairs})
        return (
            f"{len(self.pairs)} pairs of {prompts} prompts, {len(self.held_out)} held out; "
            f"{self.noising.prediction}, beta {self.beta:g}"
        )

    # What the run is made of

    def _encode(self, pairs: Sequence[Pair]) -> tuple[int, ...]:
        """Encode what no run has encoded yet, let go of the encoders; the one shape of all latents."""
        pipe, missing = self.pipeline, self.encoded.missing(pairs)
        if missing:
            self.log(f"encoding {missing} pictures and prompts")
            denoiser = getattr(pipe, self.family.denoiser)
            setattr(pipe, self.family.denoiser, Waiting(denoiser))
            for name in TEXT:
                if getattr(pipe, name, None) is not None:
                    getattr(pipe, name).to(self.device)
            pipe.vae.to(self.device)
            self.encoded.prepare(pairs)
            setattr(pipe, self.family.denoiser, denoiser)
        if self.config.judge is not None:
            self.guide = self._guide(self.config.judge, pairs)
        for name in ("vae", *TEXT):
            if getattr(pipe, name, None) is not None:
                setattr(pipe, name, None)
        images = {side.image for pair in pairs for side in (pair.chosen, pair.rejected)}
        sizes = {self.encoded.size(image) for image in sorted(images)}
        if len(sizes) > 1:
            sides = ", ".join(f"{wide} x {high}" for wide, high in sorted(sizes, key=lambda s: s[::-1])[:4])
            raise BadInput(f"the pictures have several sizes ({sides}, …); set size to train on one")
        self.size = sizes.pop()
        return tuple(self.encoded.latent(min(images)).shape)

    def _noising(self) -> Noising:
        pipe, shift = self.pipeline, self.config.shift
        if not self.family.own_call:
            return noising_of(pipe, (self.shape[1], self.shape[2]), shift)
        mu = self.encoded.call(self.size).mu(self.encoded.condition(self.pairs[0].condition))
        return noising_of(pipe, (0, 0), shift, mu)

    def _denoiser(self) -> Denoiser | FlowDenoiser:
        guidance = self.config.guidance
        if not self.family.own_call:
            return Denoiser(self.pipeline, self.family, self.model, guidance)
        # Its adapter is in the layers of the pipeline's own denoiser.
        guidance = guidance_of(self.pipeline, self.family, guidance)
        return FlowDenoiser(self.encoded.call(self.size, guidance))

    def _guide(self, settings: JudgeGradient, pairs: Sequence[Pair]) -> Guide:
        judge = open_reward(settings.reward, self.config.device)
        if judge.model is not None:
            judge.model.to(self.device)
        vae = self.pipeline.vae.requires_grad_(False).to(self.device)
        picture = self.encoded.picture(pairs[0].chosen.image)
        to_vae = None
        if self.family.own_call:
            high, wide = picture.shape[:2]
            to_vae = self.encoded.tail((wide, high), pairs[0].condition).to_vae
        return Guide(settings, vae, judge, picture, to_vae)

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

    def _copied(self, start: files.Adapter | None) -> dict[str, Tensor] | None:
        """Copy the adapter to start from into the new one; another copy, which stays the reference."""
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
    def _as_reference(self) -> Iterator[None]:
        """The model as it was before the first step: without its adapter, or with that of `start`."""
        if self.reference is None:
            with self.model.disable_adapter():
                yield
            return
        now = {name: one.data for name, one in self.weights.items()}
        try:
            for name, one in self.weights.items():
                one.data = self.reference[name]
            yield
        finally:
            for name, one in self.weights.items():
                one.data = now[name]

    # A step

    def learn(self, step: int) -> Figures:
        figures: list[dict[str, float]] = []
        found = self.descend(step, self._losses_of_step(step, figures))
        names = dict.fromkeys(name for one in figures for name in one)
        # Of the loss, too: that of the pairs alone, without weights and guidance.
        means = {name: mean(one[name] for one in figures if name in one) for name in names}
        return {**found, **means}

    def _losses_of_step(self, step: int, figures: list[dict[str, float]]) -> Iterator[Tensor]:
        """The losses of a step's batches; their figures are added to `figures`."""
        config = self.config
        each, count = config.batch_size, config.accumulation
        parts = batches_of_step(step, self.pairs, each, count, config.seed)
        for number, pairs in enumerate(parts, start=(step - 1) * count):
            losses, found = self._losses(pairs, *self._noise(range(number * each, (number + 1) * each)))
            figures.append(found)
            yield losses.mean() / count

    def _losses(self, pairs: Sequence[Pair], noise: Tensor, u: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Losses (B,) of pairs, each at its noise (B, …) and share of the way u (B,), and figures."""
        import torch

        device = self.device
        latents = [self.encoded.latent(pair.chosen.image) for pair in pairs]
        latents += [self.encoded.latent(pair.rejected.image) for pair in pairs]
        clean = torch.stack(latents).to(device)  # (2B, …): the better ones, then the worse ones
        noise = torch.cat([noise, noise]).to(device)
        signal, sigma, times = (value.to(device) for value in self.noising.at(torch.cat([u, u])))
        rows = [self.encoded.condition(pair.condition) for pair in pairs]
        conditions = self.denoiser.conditions(rows + rows, device, self.dtype)
        noisy = noised(clean, noise, signal, sigma).to(self.dtype)
        target = denoising_target(self.noising.prediction, clean, noise, signal, sigma)

        def predict() -> Tensor:
            # The adapter is float32 beside weights in bfloat16.
            with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                return self.denoiser(noisy, times, conditions)

        with torch.no_grad(), self._as_reference():
            reference = denoising_error(predict(), target)
        output = predict()
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

        noises, shares = [], []
        for place in places:
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, "noise", place))
            noises.append(torch.randn(self.shape, generator=generator))
            if self.config.times == "logit_normal":
                shares.append(torch.sigmoid(torch.randn((), generator=generator)))
            else:
                shares.append(torch.rand((), generator=generator))
        return torch.stack(noises), torch.stack(shares)

    def evaluate(self, step: int) -> tuple[dict[str, float], Figures] | None:
        """The held-out pairs, each at the same few times and noises in every run."""
        import torch

        if not self.held_out:
            return None
        figures: list[dict[str, float]] = []
        looks = [(pair, look) for pair in self.held_out for look in range(LOOKS)]
        for begin in range(0, len(looks), self.config.batch_size):
            part = looks[begin : begin + self.config.batch_size]
            seeds = [seed_of("evaluate", pair.id, look) for pair, look in part]
            noise = [torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            shares = torch.tensor([(look + 0.5) / LOOKS for _, look in part])
            with torch.no_grad():
                _, found = self._losses([pair for pair, _ in part], torch.stack(noise), shares)
            figures += [found] * len(part)
        means = {f"held-out/{name}": sum(one[name] for one in figures) / len(figures) for name in figures[0]}
        return means, {"samples": []}

    def progress_line(self, row: Figures) -> str:
        return (
            f"loss {row['loss']:.4f} right {row['accuracy']:.2f} "
            f"better {row['chosen']:+.5f} worse {row['rejected']:+.5f}"
        )

    # What is written

    def tensors(self) -> dict[str, dict[str, Any]]:
        return {"adapter": self.weights}

    def export(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        config = self.config
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
        tensors = files.lora_tensors(self.family, adapter, config.lora.alpha / config.lora.r)
        files.save_lora(folder, self.family, tensors, notes, config.export_dtype)
        (folder / "reprise.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
