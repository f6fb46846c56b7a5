"""A tiny PRIP with random weights: the real classes, and the tokenizers of the embedded world."""

from pathlib import Path

import torch

from reprise.backend.rewriters.prip.checkpoint import PripConfig
from reprise.backend.rewriters.prip.model import Prip
from reprise.backend.rewriters.prip.presets import Preset, build
from reprise.backend.rewriters.prip.rewriter import EMBEDDED_REFINER
from reprise.backend.rewriters.prip.vision import ImageConfig, ImagePivot

WEIGHTS = EMBEDDED_REFINER.parent
TINY = Preset(
    PripConfig(queries=5, width=24, window=32),
    encoder={
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    },
    decoder={
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "initializer_range": 0.3,
        "bos_token_id": None,
    },
    image=ImageConfig(
        queries=5,
        vision={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
            "initializer_range": 0.2,
        },
        qformer={
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "encoder_hidden_size": 32,
            "cross_attention_frequency": 1,
            "initializer_range": 0.2,
        },
    ),
)


def tokenizers():
    from transformers import AutoTokenizer

    folders = WEIGHTS / "renderer" / "tokenizer_2", WEIGHTS / "rewriter"
    return tuple(AutoTokenizer.from_pretrained(folder) for folder in folders)


def tiny(preset: Preset = TINY) -> Prip:
    """Pivots differ from prompt to prompt: T5's own initial weights are small."""
    torch.manual_seed(1)
    model = build(preset, *tokenizers()).eval()
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.mul_(1.5)
        model.projector.weight.mul_(4)
    model.set_statistics(
        torch.randn(preset.config.queries, preset.config.width),
        torch.rand(preset.config.queries, preset.config.width) + 0.5,
    )
    return model


def image(preset: Preset = TINY) -> ImagePivot:
    torch.manual_seed(2)
    return ImagePivot(preset.image).eval().requires_grad_(False)


def save(folder: Path, **settings) -> Path:
    """The folder of a refiner with its vision tower."""
    tiny().save_pretrained(folder, settings={"max_new_tokens": 8, **settings}, image=image())
    return folder
