"""The few-step renderer: a tiny Chroma, distilled from the tiny FLUX to four steps without guidance.

Source: PeRFlow, piecewise rectified flow (Yan et al. 2024, arXiv 2405.07510). The teacher's guided path is
cut into as many windows as the student has steps, and inside a window the student learns the straight line
between the path's two ends. So one step a window follows the teacher, and any multiple of four steps does.
Departs from it: the windows' ends lie on whole paths from noise, as they do when the student draws, not on
noised pictures; most samples are at a window's start.

Chroma (huggingface.co/lodestones/Chroma1-HD, 2025) is FLUX without CLIP, with one small network for the
modulations of all blocks. So the student starts from the teacher's blocks, and that network first learns the
teacher's modulations, averaged over captions; and T5 learns to say the ground, which the teacher knows from
CLIP alone.
"""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import training_caption
from ...shapeworld.prompts import prompts
from ...shapeworld.scenes import GROUNDS, random_scene
from .assemble import write_pipeline
from .flux import image_ids
from .muon import muon_and_adamw
from .text_encoders import TEXT_LENGTH, tokenize
from .training import WeightsLoop, save_whole, update_average

PATHS, FIRSTS = 448, 1024  # the teacher's whole paths, and those of which it draws only the first window
SHARD = 32  # paths that are drawn and saved at once
WINDOWS, SUBSTEPS, GUIDANCE = 4, 4, 3.0  # the teacher takes 16 steps with guidance 3, as when it draws
AS_TYPED = 0.15  # share of prompts as users type them; the others are captions
GROUND_STEPS, GROUND_RATE, GROUND_SIZE = 600, 1e-3, 3.0  # a feature vector's length is 11
FIT_STEPS, FIT_BATCH, FIT_RATE = 1500, 16, 2e-3
STEPS, BATCH, RATE, EMA = 1000, 32, 1e-3, 0.99
WINDOW_SHARES = (0.55, 0.15, 0.15, 0.15)  # of the samples; the first window, with the layout, is hardest
AT_START, HALFWAY = 0.5, 0.2  # shares of the samples there; the others are anywhere in their window


def prompt(rng: random.Random) -> str:
    """A training caption or a prompt of the train split; never a held-out prompt's text."""
    while True:
        if rng.random() < AS_TYPED:
            return rng.choice(prompts("train")).prompt
        text = training_caption(random_scene(rng), rng, empty=0.0, incomplete=0.15)
        if text not in _held_out_texts():
            return text


@cache
def _held_out_texts() -> frozenset[str]:
    return frozenset(case.prompt for case in prompts("held-out"))


@torch.no_grad()
def teacher_paths(
    pipeline: Any, texts: list[str], noise: torch.Tensor, windows: int = WINDOWS
) -> torch.Tensor:
    """Packed noise (B, 64, 64) -> the ends of the first windows (B, windows + 1, 64, 64) of the teacher's
    guided Euler path, the noise first."""
    clip_ids, t5_ids = tokenize([*texts, ""], pipeline.tokenizer, pipeline.tokenizer_2)
    features = pipeline.text_encoder_2(input_ids=t5_ids).last_hidden_state
    pooled = pipeline.text_encoder(input_ids=clip_ids).pooler_output
    rows = [*range(len(texts)), *[len(texts)] * len(texts)]  # each prompt, then as often the empty one
    fixed = {
        "encoder_hidden_states": features[rows],
        "pooled_projections": pooled[rows],
        "txt_ids": torch.zeros(features.shape[1], 3),
        "img_ids": image_ids(),
        "return_dict": False,
    }
    steps, latents, ends = WINDOWS * SUBSTEPS, noise, [noise]
    for step in range(windows * SUBSTEPS):
        sigma = torch.full((len(rows),), 1 - step / steps)
        both = pipeline.transformer(hidden_states=latents.repeat(2, 1, 1), timestep=sigma, **fixed)[0]
        wanted, empty = both.chunk(2)
        latents = latents - (empty + GUIDANCE * (wanted - empty)) / steps
        if (step + 1) % SUBSTEPS == 0:
            ends.append(latents)
    return torch.stack(ends, 1)


def draw_paths(
    work: Path, start: Path, seed: int, count: int, windows: int = WINDOWS, log=print
) -> tuple[list[str], torch.Tensor]:
    """(prompts, windows' ends (count, windows + 1, 64, 64) in half precision) of the pipeline in `start`.

    Shards are kept in `work/paths`, so that a stopped run goes on.
    """
    from diffusers import FluxPipeline

    kept, pipeline = work / "paths", None
    kept.mkdir(parents=True, exist_ok=True)
    texts, parts = [], []
    for shard in range(-(-count // SHARD)):
        rng = random.Random(f"{seed} {shard}")
        chosen = [prompt(rng) for _ in range(SHARD)]
        file = kept / f"{seed}-{windows}-{shard}.pt"
        if not file.exists():
            pipeline = pipeline or FluxPipeline.from_pretrained(start, torch_dtype=torch.float32)
            noise = torch.randn(SHARD, 64, 64, generator=torch.Generator().manual_seed(rng.getrandbits(48)))
            save_whole(teacher_paths(pipeline, chosen, noise, windows).half(), file)
            log(f"drew {(shard + 1) * SHARD} of {count} paths of {windows} windows")
        texts += chosen
        parts.append(torch.load(file, weights_only=True))
    return texts[:count], torch.cat(parts)[:count]


def ground_features(texts: list[str], width: int) -> torch.Tensor:
    """What each prompt's features get in addition (B, 1, width): a direction for each ground, nothing where
    the prompt names none."""
    directions = torch.linalg.qr(torch.randn(width, len(GROUNDS), generator=torch.Generator().manual_seed(0)))
    added = torch.zeros(len(texts), 1, width)
    for row, text in zip(added, texts, strict=True):
        for i, ground in enumerate(GROUNDS):
            if f"{ground} background" in text:
                row[0] = GROUND_SIZE * directions.Q[:, i]
    return added


def teach_grounds(pipeline: Any, work: Path, seed: int, steps: int, log=print) -> Any:
    """The pipeline's T5, trained to say the ground in each token's features, and else what it said before.

    The teacher knows the ground from CLIP alone. Its image tokens look at the words for things and places,
    and so would the student's: without this stage it guessed the ground after 500 steps.
    """
    from transformers import T5EncoderModel

    done = work / "text_encoder"
    if done.exists():
        return T5EncoderModel.from_pretrained(done).eval()
    before, tokenizer = pipeline.text_encoder_2, pipeline.tokenizer_2
    encoder = copy.deepcopy(before)
    optimizers = muon_and_adamw(encoder, "encoder.block.", rate=GROUND_RATE, decay=0.0)
    loop = WeightsLoop(encoder, optimizers, work / "text.ckpt", steps, seed, warmup=20, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        texts = [prompt(rng) for _ in range(BATCH)]
        words = tokenizer(
            texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            said = before(**words).last_hidden_state
        target = said + ground_features(texts, said.shape[-1])
        loss = F.mse_loss(encoder(**words).last_hidden_state, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        return loss.item()

    loop.run(take_step, log_every=25)
    encoder.eval().save_pretrained(done)
    return encoder


def new_transformer(teacher: Any) -> Any:
    """A ChromaTransformer2DModel with the blocks of `teacher`, a FluxTransformer2DModel; what computes its
    modulations is random."""
    from diffusers import ChromaTransformer2DModel

    known = teacher.config
    shared = (
        "in_channels num_layers num_single_layers attention_head_dim num_attention_heads joint_attention_dim "
        "axes_dims_rope".split()
    )
    student = ChromaTransformer2DModel(
        **{name: known[name] for name in shared},
        approximator_num_channels=64,
        approximator_hidden_dim=teacher.inner_dim,
        approximator_layers=3,
    )
    weights = teacher.state_dict()
    missing = student.load_state_dict({k: v for k, v in weights.items() if k in student.state_dict()}, False)
    assert all(name.startswith("distilled_guidance_layer.") for name in missing.missing_keys)
    return student


@torch.no_grad()
def modulations(teacher: Any, pooled: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Noise levels (N,) -> a FLUX transformer's modulations (N, vectors, width) in Chroma's order, averaged
    over the captions' pooled vectors (B, width)."""
    conditions = [F.silu(teacher.time_text_embed(s.expand(len(pooled)) * 1000, pooled)) for s in sigma]
    embedding = torch.stack(conditions)  # (N, B, width)
    layers = [block.norm.linear for block in teacher.single_transformer_blocks]
    layers += [block.norm1.linear for block in teacher.transformer_blocks]
    layers += [block.norm1_context.linear for block in teacher.transformer_blocks]
    scale, shift = teacher.norm_out.linear(embedding).chunk(2, -1)  # Chroma has them the other way round
    found = torch.cat([*(layer(embedding) for layer in layers), shift, scale], -1).mean(1)
    return found.unflatten(-1, (-1, teacher.inner_dim))


def fit_modulations(student: Any, pipeline: Any, work: Path, seed: int, steps: int, log=print) -> None:
    """Trains the student's modulation network on those of the FLUX pipeline."""
    rng, sigma = random.Random(seed), torch.linspace(0, 1, 65)
    captions = [prompt(rng) for _ in range(128)]
    clip_ids, _ = tokenize(captions, pipeline.tokenizer, pipeline.tokenizer_2)
    with torch.no_grad():
        pooled = pipeline.text_encoder(input_ids=clip_ids).pooler_output
    targets = modulations(pipeline.transformer, pooled, sigma)
    network = student.distilled_guidance_layer
    optimizer = torch.optim.AdamW(network.parameters(), FIT_RATE, (0.9, 0.98), weight_decay=0.0)
    loop = WeightsLoop(network, [optimizer], work / "modulations.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        chosen = rng.sample(range(len(sigma)), FIT_BATCH)
        found = network(student.time_text_embed(sigma[chosen] * 1000))
        loss = F.mse_loss(found, targets[chosen])
        loss.backward()
        return loss.item()

    loop.run(take_step, log_every=50)


def read_prompts(pipeline: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts -> T5's features (B, TEXT_LENGTH, width) and the mask (B, TEXT_LENGTH + 64) that ChromaPipeline
    gives its transformer."""
    with torch.no_grad():
        features, mask = pipeline._get_t5_prompt_embeds(texts, max_sequence_length=TEXT_LENGTH)
        return features, pipeline._prepare_attention_mask(len(texts), 64, features.dtype, mask)


def windowed(ends: torch.Tensor, window: torch.Tensor, done: torch.Tensor):
    """Latents on the straight lines of windows, `done` (B,) of the way from their starts, with noise levels
    and velocities. `ends` is (B, WINDOWS + 1, 64, 64), `window` (B,) counts from 0, at the noise."""
    rows = torch.arange(len(ends))
    first, last = ends[rows, window], ends[rows, window + 1]
    noisy = torch.lerp(first, last, done[:, None, None])
    return noisy, 1 - (window + done) / WINDOWS, (first - last) * WINDOWS


def train_turbo(
    work: Path,
    start: Path,
    seed: int = 0,
    steps: int = STEPS,
    paths: int = PATHS,
    firsts: int = FIRSTS,
    ground_steps: int = GROUND_STEPS,
    fit_steps: int = FIT_STEPS,
    compiled: bool = True,
    log=print,
) -> Path:
    """Distils the FLUX pipeline in `start` on `paths` whole paths and `firsts` first windows; saves
    `work/transformer` and `work/text_encoder`. `SHARD` paths more are not trained on: the log has the loss on
    them."""
    from diffusers import FluxPipeline

    done = work / "transformer"
    if done.exists():
        return done
    texts, ends = draw_paths(work, start, seed, paths + SHARD, WINDOWS, log)
    more, first = draw_paths(work, start, seed + 1, firsts, 1, log)
    ends = torch.cat([ends, F.pad(first, (0, 0, 0, 0, 0, WINDOWS - 1))])
    torch.manual_seed(seed)
    flux: Any = FluxPipeline.from_pretrained(start, torch_dtype=torch.float32)
    encoder = teach_grounds(flux, work, seed, ground_steps, log)
    student = new_transformer(flux.transformer)
    fit_modulations(student, flux, work, seed, fit_steps, log)
    features, masks = read_prompts(chroma_pipeline(flux, student, encoder), [*texts, *more])
    average = copy.deepcopy(student).requires_grad_(False)
    both = nn.ModuleDict({"model": student, "average": average})
    denoise = torch.compile(student) if compiled else student
    optimizers = muon_and_adamw(student, "blocks.", rate=RATE, decay=0.0)
    loop = WeightsLoop(both, optimizers, work / "turbo.ckpt", steps, seed, warmup=30, log=log)
    fixed = {"txt_ids": torch.zeros(TEXT_LENGTH, 3), "img_ids": image_ids(), "return_dict": False}

    def error(model: Any, chosen: list[int], window: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        noisy, sigma, velocity = windowed(ends[chosen].float(), window, share)
        found = model(
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=features[chosen],
            attention_mask=masks[chosen],
            **fixed,
        )[0]
        return F.mse_loss(found, velocity)

    usable = [i for i in range(len(ends)) if not paths <= i < paths + SHARD]

    def take_step(rng: random.Random, step: int) -> float:
        window = torch.multinomial(torch.tensor(WINDOW_SHARES), BATCH, replacement=True)
        chosen = [rng.choice(usable[:paths] if w else usable) for w in window.tolist()]
        kind, share = torch.rand(BATCH), torch.rand(BATCH)
        share[kind < AT_START + HALFWAY] = 0.5
        share[kind < AT_START] = 0.0
        loss = error(denoise, chosen, window, share)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        update_average(average, student, EMA, step)
        if step % 100 == 0:
            held_out = list(range(paths, paths + SHARD))
            with torch.no_grad():
                losses = [
                    error(average, held_out, torch.full((SHARD,), w), torch.zeros(SHARD)).item()
                    for w in range(WINDOWS)
                ]
            log(f"step {step}, other paths, window by window: {' '.join(f'{one:.4f}' for one in losses)}")
        return loss.item()

    loop.run(take_step, log_every=25)
    average.eval().save_pretrained(done)
    return done


def chroma_pipeline(flux: Any, transformer: Any, text_encoder: Any) -> Any:
    """A ChromaPipeline with these models and the FLUX pipeline's other parts."""
    from diffusers import ChromaPipeline

    return ChromaPipeline(
        scheduler=flux.scheduler,
        vae=flux.vae,
        text_encoder=text_encoder,
        tokenizer=flux.tokenizer_2,
        transformer=transformer,
    )


def assemble_turbo(work: Path, start: Path, out: Path) -> Path:
    """Writes `out`, a ChromaPipeline's folder, from the models in `work` and the FLUX pipeline in `start`."""
    from diffusers import ChromaTransformer2DModel, FluxPipeline
    from transformers import T5EncoderModel

    flux: Any = FluxPipeline.from_pretrained(start, torch_dtype=torch.float32)
    pipeline = chroma_pipeline(
        flux,
        ChromaTransformer2DModel.from_pretrained(work / "transformer"),
        T5EncoderModel.from_pretrained(work / "text_encoder"),
    )
    return write_pipeline(pipeline, work / "pipeline", out)


def build(work: Path, log=print) -> Path:
    """Distils the package's own tiny FLUX; returns the pipeline's folder, `work/renderer-turbo`."""
    from ...renderers.shapeworld import WEIGHTS

    train_turbo(work, WEIGHTS, log=log)
    return assemble_turbo(work, WEIGHTS, work / "renderer-turbo")
