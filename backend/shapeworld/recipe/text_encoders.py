"""The tiny text encoders, pre-trained to ground captions: CLIP's pooled vector, T5's token features.

Real text encoders come pre-trained; these learn from captions alone which colour and shape lies in
each of the 8 x 8 cells the renderer draws in (cross-entropy over ground, colour and shape per cell,
from queries that attend to the T5 features; CLIP's pooled vector predicts the counts of colours and
shapes). The renderer then trains on with them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..captions import training_caption
from ..scenes import COLORS, GROUNDS, SHAPES, SIZE, Scene, random_scene
from .tokenizers import CLIP_LENGTH, clip_tokenizer, t5_tokenizer
from .training import StepLoop

STEPS, BATCH, GRID = 1200, 48, 8
TEXT_LENGTH = 48  # T5 tokens; four things spelled out take up to 46
T5_WIDTH, CLIP_WIDTH = 128, 64


def new_text_encoders():
    """(CLIPTextModel, T5EncoderModel) at tiny size."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip_tok: Any = clip_tokenizer()
    t5_tok: Any = t5_tokenizer()
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_tok), hidden_size=CLIP_WIDTH, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=CLIP_LENGTH, projection_dim=CLIP_WIDTH,
        bos_token_id=clip_tok.bos_token_id, eos_token_id=clip_tok.eos_token_id,
        pad_token_id=clip_tok.pad_token_id,
    ))  # fmt: skip
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_tok), d_model=T5_WIDTH, d_kv=32, d_ff=256, num_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
        relative_attention_num_buckets=16, relative_attention_max_distance=48,
    ))  # fmt: skip
    return clip, t5


def tokenize(captions: list[str], clip_tok, t5_tok) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded as FluxPipeline pads them: CLIP (B, 77), T5 (B, TEXT_LENGTH)."""
    clip_ids = clip_tok(captions, padding="max_length", max_length=CLIP_LENGTH, truncation=True)
    t5_ids = t5_tok(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
    return torch.tensor(clip_ids["input_ids"]), torch.tensor(t5_ids["input_ids"])


class Grounding(nn.Module):
    """The encoders with the heads that only their pre-training needs."""

    def __init__(self):
        super().__init__()
        self.clip, self.t5 = new_text_encoders()
        self.queries = nn.Parameter(torch.randn(GRID * GRID, T5_WIDTH) * 0.1)
        self.attention = nn.MultiheadAttention(T5_WIDTH, 4, batch_first=True)
        self.cells = nn.Sequential(nn.LayerNorm(T5_WIDTH), nn.Linear(T5_WIDTH, 256), nn.GELU(),
                                   nn.Linear(256, len(COLORS) + len(SHAPES) + 2))  # fmt: skip
        self.counts = nn.Linear(CLIP_WIDTH, len(COLORS) + len(SHAPES) + len(GROUNDS))

    def forward(self, clip_ids, t5_ids):
        features = self.t5(input_ids=t5_ids).last_hidden_state  # (B, T, D)
        queries = self.queries.expand(len(features), -1, -1)
        read = queries + self.attention(queries, features, features, need_weights=False)[0]
        return self.cells(read), self.counts(self.clip(input_ids=clip_ids).pooler_output)


def _targets(scene: Scene) -> tuple[list[int], list[int], list[float]]:
    """Per cell the colour and shape (0 = ground), and what the pooled vector should count."""
    colors, shapes = [0] * GRID**2, [0] * GRID**2
    counts = [0.0] * (len(COLORS) + len(SHAPES)) + [float(g == scene.ground) for g in GROUNDS]
    cell = SIZE / GRID
    for thing in scene.things:
        color, shape = list(COLORS).index(thing.color), SHAPES.index(thing.shape)
        counts[color] += 1
        counts[len(COLORS) + shape] += 1
        for i in range(GRID**2):
            x, y = (i % GRID + 0.5) * cell, (i // GRID + 0.5) * cell
            if abs(x - thing.x) < thing.radius and abs(y - thing.y) < thing.radius:
                colors[i], shapes[i] = color + 1, shape + 1
    return colors, shapes, counts


def train_text_encoders(work: Path, seed: int = 0, steps: int = STEPS, log=print) -> Path:
    """Train and save to `work/text_encoder` (CLIP) and `work/text_encoder_2` (T5), with tokenizers."""
    done = work / "text_encoder_2"
    if done.exists():
        return done
    torch.manual_seed(seed)
    model = Grounding()
    clip_tok, t5_tok = clip_tokenizer(), t5_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    loop = StepLoop(model, [optimizer], work / "text.ckpt", steps, seed, log=log)
    split = len(COLORS) + 1

    def take_step(rng: random.Random, step: int) -> float:
        scenes = [random_scene(rng) for _ in range(BATCH)]
        ids = tokenize([training_caption(scene, rng) for scene in scenes], clip_tok, t5_tok)
        colors, shapes, counts = (torch.tensor(part) for part in zip(*map(_targets, scenes)))
        cells, pooled = model(*ids)
        loss = F.cross_entropy(cells[..., :split].flatten(0, 1), colors.flatten())
        loss = loss + F.cross_entropy(cells[..., split:].flatten(0, 1), shapes.flatten())
        loss = loss + 0.1 * F.mse_loss(pooled, counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    model.clip.eval().save_pretrained(work / "text_encoder")
    model.t5.eval().save_pretrained(done)
    clip_tok.save_pretrained(work / "tokenizer")
    t5_tok.save_pretrained(work / "tokenizer_2")
    return done
