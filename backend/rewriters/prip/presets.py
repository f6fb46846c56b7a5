"""PRIP's presets: the sizes of a refiner's parts, and the published weights that training starts from.

`paper` is the paper's setup (section 4.3, appendix A.5). `tinyllama` has its smaller decoder (section 5.5),
which does nearly as well. The paper gives 738 M parameters for the encoder, which is T5-Large without
Flan-T5's gated layers; Flan-T5-Large with queries and head has 751 M. `shapeworld` is the embedded world's
preset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import UnknownName
from .checkpoint import PripConfig
from .model import Prip
from .vision import ImageConfig

if TYPE_CHECKING:
    from .vision import ImagePivot

_FLAN_T5_LARGE = {
    "vocab_size": 32128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
# ViT-g/14 at 224 pixels and 12 layers of Q-Former: transformers' defaults are BLIP-2's.
_BLIP_2 = ImageConfig(queries=32, vision={}, qformer={})


@dataclass(frozen=True)
class Preset:
    """Arguments of transformers' configs for each part of a refiner.

    `sources` are the Hugging Face names of published weights for "encoder", "decoder" and "image". A part
    without a source starts from random weights.
    """

    config: PripConfig
    encoder: dict[str, Any]  # for T5Config
    decoder: dict[str, Any]  # for the config class of its "model_type"
    image: ImageConfig
    sources: dict[str, str] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "shapeworld": Preset(
        PripConfig(queries=16, width=64, window=128),
        encoder={
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 256,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 48,
        },
        decoder={
            "model_type": "qwen2",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "initializer_range": 0.06,
            "bos_token_id": None,
        },
        # BLIP-2's own initializer_range is 1e-10; with random weights of that scale nothing is learned.
        image=ImageConfig(
            queries=16,
            vision={
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 128,
                "patch_size": 16,
                "initializer_range": 0.1,
            },
            qformer={
                "hidden_size": 64,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "encoder_hidden_size": 96,
                "cross_attention_frequency": 1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "initializer_range": 0.1,
            },
        ),
    ),
    "tinyllama": Preset(
        PripConfig(),
        _FLAN_T5_LARGE,
        decoder={
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
        },
        image=_BLIP_2,
        sources={
            "encoder": "google/flan-t5-large",
            "image": "Salesforce/blip2-opt-2.7b",
            "decoder": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        },
    ),
    "paper": Preset(
        PripConfig(),
        _FLAN_T5_LARGE,
        decoder={
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        },
        image=_BLIP_2,
        sources={
            "encoder": "google/flan-t5-large",
            "image": "Salesforce/blip2-opt-2.7b",
            "decoder": "meta-llama/Llama-2-7b-hf",
        },
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises UnknownName."""
    if name not in PRESETS:
        raise UnknownName("PRIP preset", name, PRESETS)
    return PRESETS[name]


def build(preset: Preset, encoder_tokenizer: Any = None, decoder_tokenizer: Any = None) -> Prip:
    """A refiner of these sizes with random weights from torch's generator, on torch's default device.

    With tokenizers, the vocabularies get the tokenizers' sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5Model

    encoder, decoder = dict(preset.encoder), dict(preset.decoder)
    if encoder_tokenizer is not None:
        encoder |= {
            "vocab_size": len(encoder_tokenizer),
            "pad_token_id": encoder_tokenizer.pad_token_id,
            "eos_token_id": encoder_tokenizer.eos_token_id,
        }
    if decoder_tokenizer is not None:
        decoder |= {
            "vocab_size": -(-len(decoder_tokenizer) // 64) * 64,  # rounded up to a multiple of 64
            "pad_token_id": decoder_tokenizer.pad_token_id,
            "eos_token_id": decoder_tokenizer.eos_token_id,
        }
    t5 = T5Model(T5Config(**encoder))
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**decoder))
    return Prip(preset.config, t5, language_model, encoder_tokenizer, decoder_tokenizer)


def build_vision_tower(preset: Preset) -> ImagePivot:
    """The preset's vision tower with random weights from torch's generator, on torch's default device."""
    from .vision import ImagePivot

    return ImagePivot(preset.image)
