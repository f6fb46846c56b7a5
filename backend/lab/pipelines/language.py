"""Tiny language models and their tokenizers, as text encoders."""

# diffusers annotates many of its arguments too narrowly.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from .parts import lively

_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(length: int = 1024, begins: bool = False):
    """A token for each byte, with a chat template. If it `begins`, no words are a token, too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = _SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{_SPECIAL[1]} $A", special_tokens=[(_SPECIAL[1], 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=_SPECIAL,
        **{"eos_token": _SPECIAL[2], "bos_token": _SPECIAL[1], "pad_token": _SPECIAL[0]},
        chat_template=_TEMPLATE,
        model_max_length=length,
    )


VOCABULARY = 262


def causal_config(layers: int, width: int = 16, heads: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": 4096,
        **more,
    }


def qwen3(layers: int = 3, causal: bool = False):
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    return lively((Qwen3ForCausalLM if causal else Qwen3Model)(Qwen3Config(**causal_config(layers))), 2)


def gemma2(layers: int = 2):
    from transformers import Gemma2Config, Gemma2Model

    return lively(Gemma2Model(Gemma2Config(**causal_config(layers))), 2)


def llama(layers: int = 2, causal: bool = False, **more: Any):
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(**causal_config(layers, **more))
    return lively((LlamaForCausalLM if causal else LlamaModel)(config), 2)


_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}


def qwen25_vl(layers: int = 2, bare: bool = False):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=causal_config(layers, rope_parameters=rope),
        vision_config={**_VISION, "out_hidden_size": 16, "fullatt_block_indexes": [0]},
    )
    return lively((Qwen2_5_VLModel if bare else Qwen2_5_VLForConditionalGeneration)(config), 2)


def qwen3_vl(layers: int = 3, bare: bool = False):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen3VLConfig(
        text_config=causal_config(layers, rope_parameters=rope),
        vision_config={**_VISION, "out_hidden_size": 16, "deepstack_visual_indexes": [0]},
    )
    return lively((Qwen3VLModel if bare else Qwen3VLForConditionalGeneration)(config), 2)


class TextProcessor:
    """What pipelines use of a multimodal processor to read words: its tokenizer. (A real one needs
    torchvision.)"""

    def __init__(self, tokenizer: Any = None):
        self.tokenizer = tokenizer or byte_tokenizer()

    def __call__(self, text: Any = None, **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        # A processor returns a batch of tokens for a single conversation, too, but a single text.
        single = not isinstance(messages[0], list)
        told = self.tokenizer.apply_chat_template([messages] if single else messages, **options)
        return told[0] if single and not options.get("tokenize", True) else told
