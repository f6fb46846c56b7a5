"""The tiny text encoders, pre-trained to ground captions: CLIP's pooled vector, T5's token features.

Real text encoders come pre-trained. These learn from captions alone which colour, shape and size lies in each
of the nine places (cross-entropy, with one query per place that attends to the T5 features); CLIP's pooled
vector predicts the counts of colours and shapes. Binding colours, shapes and places is learned here in a
tenth of the time it takes through pictures. The renderer's training then continues with them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...shapeworld.captions import spelled_out, training_caption
from ...shapeworld.scenes import COLORS, GROUNDS, PLACES, SHAPES, Scene, random_scene
from ...shapeworld.tokenizers import CLIP_LENGTH, clip_tokenizer, t5_tokenizer
from .muon import Muon
from .training import WeightsLoop

STEPS, BATCH, RATE = 1500, 32, 3e-3
TEXT_LENGTH = 48  # T5 tokens; four things spelled out take up to 46
T5_WIDTH, CLIP_WIDTH = 128, 64
ANSWERS = [len(COLORS) + 1, len(SHAPES) + 1, 3]  # classes of a place's colour, shape and size, with "nothing"


def new_text_encoders():
    """(CLIPTextModel, T5EncoderModel) at tiny size."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip_tok: Any = clip_tokenizer()
    t5_tok: Any = t5_tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tok),
            hidden_size=CLIP_WIDTH,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_LENGTH,
            projection_dim=CLIP_WIDTH,
            bos_token_id=clip_tok.bos_token_id,
            eos_token_id=clip_tok.eos_token_id,
            pad_token_id=clip_tok.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tok),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=48,
        )
    )
    return clip, t5


def tokenize(captions: list[str], clip_tok, t5_tok) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded as FluxPipeline pads them: CLIP (B, 77), T5 (B, TEXT_LENGTH)."""
    clip_ids = clip_tok(captions, padding="max_length", max_length=CLIP_LENGTH, truncation=True)
    t5_ids = t5_tok(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
    return torch.tensor(clip_ids["input_ids"]), torch.tensor(t5_ids["input_ids"])


class Reader(nn.Module):
    """The heads for pre-training: what lies in each place, from the token features, and the counts of
    colours, shapes and grounds, from the pooled vector."""

    def __init__(self, width: int, pooled_width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PLACES), width) * 0.1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.places = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 256), nn.GELU(), nn.Linear(256, sum(ANSWERS))
        )
        self.counts = nn.Linear(pooled_width, len(COLORS) + len(SHAPES) + len(GROUNDS))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> logits (B, 9, colours + shapes + sizes, each with "nothing" first)."""
        queries = self.queries.expand(len(features), -1, -1)
        return self.places(queries + self.attention(queries, features, features, need_weights=False)[0])

    def loss(self, scenes: list[Scene], features: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of colour, shape and size per place, and a little of the counts' error."""
        answers, counts = (torch.tensor(part) for part in zip(*map(_targets, scenes)))
        loss = 0.1 * F.mse_loss(self.counts(pooled), counts)
        for logits, answer in zip(self(features).split(ANSWERS, -1), answers.unbind(-1)):
            loss = loss + F.cross_entropy(logits.flatten(0, 1), answer.flatten())
        return loss


class FluxGrounding(nn.Module):
    """Both encoders with a `Reader` of T5's token features and CLIP's pooled vector."""

    def __init__(self):
        super().__init__()
        self.clip, self.t5 = new_text_encoders()
        self.reader = Reader(T5_WIDTH, CLIP_WIDTH)

    def loss(self, scenes: list[Scene], clip_ids, t5_ids) -> torch.Tensor:
        features = self.t5(input_ids=t5_ids).last_hidden_state
        return self.reader.loss(scenes, features, self.clip(input_ids=clip_ids).pooler_output)


def _targets(scene: Scene) -> tuple[list[list[int]], list[float]]:
    """(colour, shape and size per place, where 0 is nothing; counts that the pooled vector should
    predict)."""
    answers = [[0, 0, 0] for _ in PLACES]
    counts = [0.0] * (len(COLORS) + len(SHAPES)) + [float(g == scene.ground) for g in GROUNDS]
    for thing in scene.things:
        color, shape = list(COLORS).index(thing.color), SHAPES.index(thing.shape)
        counts[color] += 1
        counts[len(COLORS) + shape] += 1
        answers[PLACES.index(thing.place)] = [color + 1, shape + 1, 1 + (thing.size == "large")]
    return answers, counts


def _scene(rng: random.Random) -> Scene:
    """A random scene, mostly of different things: equal things give nothing to bind."""
    scene = random_scene(rng)
    wanted = rng.random() < 0.8
    while wanted and len({(t.color, t.shape) for t in scene.things}) == 1:
        scene = random_scene(rng)
    return scene


def captioned_scenes(rng: random.Random, count: int) -> tuple[list[Scene], list[str]]:
    """(scenes, captions that mostly spell them out), the data of the pre-training."""
    scenes = [_scene(rng) for _ in range(count)]
    return scenes, [spelled_out(s, rng) if rng.random() < 0.9 else training_caption(s, rng) for s in scenes]


def optimizers_for(model: FluxGrounding) -> list[torch.optim.Optimizer]:
    """Muon for T5's matrices, AdamW for everything else, with ten times the rate for T5's relative-position
    bias.

    That bias starts near 0 and must grow by several units before a word can attend to its neighbours.
    """
    matrices, distance, others = [], [], []
    for name, p in model.named_parameters():
        if "relative_attention_bias" in name:
            distance.append(p)
        else:
            (matrices if name.startswith("t5.encoder.block") and p.ndim == 2 else others).append(p)
    adam = torch.optim.AdamW(
        [{"params": others}, {"params": distance, "lr": RATE * 10, "weight_decay": 0.0}],
        lr=RATE,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    return [Muon(matrices, lr=RATE), adam]


def train_text_encoders(work: Path, seed: int = 0, steps: int = STEPS, log=print) -> Path:
    """Trains and saves `work/text_encoder` (CLIP) and `work/text_encoder_2` (T5), with their tokenizers."""
    done = work / "text_encoder_2"
    if done.exists():
        return done
    torch.manual_seed(seed)
    model = FluxGrounding()
    clip_tok, t5_tok = clip_tokenizer(), t5_tokenizer()
    loop = WeightsLoop(model, optimizers_for(model), work / "text.ckpt", steps, seed, log=log)

    def take_step(rng: random.Random, step: int) -> float:
        scenes, captions = captioned_scenes(rng, BATCH)
        loss = model.loss(scenes, *tokenize(captions, clip_tok, t5_tok))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss.item()

    loop.run(take_step)
    model.clip.eval().save_pretrained(work / "text_encoder")
    model.t5.eval().save_pretrained(done)
    clip_tok.save_pretrained(work / "tokenizer")
    t5_tok.save_pretrained(work / "tokenizer_2")
    return done
