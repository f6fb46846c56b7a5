"""CLIP for the judges built on it: tokenizer, embeddings, and open_clip's key names.

Sources: openai/CLIP's tokenizer and its merges (`core.clip_vocabulary`); open_clip's names of the weights;
the architecture is transformers' CLIPModel.
Departs from the tokenizer: of ftfy's repairs only those that a typed prompt can need are done (curly
quotes, ligatures, wide letters, control characters); wrongly decoded text is not repaired.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.clip_vocabulary import clip_vocabulary
from .checkpoint import Source, read_settings

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT = 77
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SINGLE, _DOUBLE = re.compile("[\u02bc\u2018-\u201b]"), re.compile("[\u201c-\u201f]")
_COMPATIBLE = re.compile("[\ufb00-\ufb06\uff01-\uffef\u3000]+")  # ligatures; full and half width


def tokens(prompts: Sequence[str], clean: bool = True) -> Tensor:
    """Token ids (B, 77): start, words, end, then zeros. Longer prompts are cut off before the end token.

    `clean`: with openai's cleaning of the text, which transformers' tokenizer does not do.
    """
    import torch

    codec, start = _tokenizer()
    rows = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
    for row, prompt in zip(rows, prompts):
        words = codec.encode(clean_text(prompt) if clean else prompt).ids[: CONTEXT - 2]
        row[: len(words) + 2] = torch.tensor([start, *words, start + 1])
    return rows


def clean_text(text: str) -> str:
    """Replaces HTML entities, curly quotes, ligatures and wide letters; removes control characters."""
    text = _COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _DOUBLE.sub('"', _SINGLE.sub("'", text))
    text = "".join(c for c in text if c in "\t\n\r" or unicodedata.category(c) != "Cc")
    return html.unescape(html.unescape(text)).strip()


@lru_cache(1)
def _tokenizer() -> tuple[Any, int]:
    """(byte-pair encoder, id of the start token). The end token's id is one more."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pieces, merges = clip_vocabulary()
    codec = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, end_of_word_suffix="</w>"
        )
    )
    codec.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    codec.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return codec, len(pieces)


def image_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) -> unit embeddings (B, D), float32."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return _unit(model.visual_projection(pooled))


def text_embeddings(model: Any, prompts: Sequence[str], clean: bool = True) -> Tensor:
    """Prompts -> unit embeddings (B, D), float32. Equal prompts are encoded once."""
    once = list(dict.fromkeys(prompts))
    ids = tokens(once, clean)
    ids = ids[
        :, : int(ids.argmax(-1).max()) + 1
    ]  # the end token has the highest id; later ids have no effect
    ids = ids.to(model.text_projection.weight.device)
    read = _unit(model.text_projection(model.text_model(input_ids=ids).pooler_output))
    return read[[once.index(prompt) for prompt in prompts]]


def cosines(model: Any, pixels: Tensor, prompts: Sequence[str], clean: bool = True) -> Tensor:
    """Cosine similarity of each picture and its prompt: (B,), -1..1."""
    return (image_embeddings(model, pixels) * text_embeddings(model, prompts, clean)).sum(-1)


def _unit(features: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.normalize(features.float(), dim=-1)


def read_config(path: Path) -> Any:
    """The CLIPConfig of a config.json in Hugging Face's layout. Raises CheckpointError for another
    model's."""
    from transformers import CLIPConfig

    return CLIPConfig.from_dict(read_settings(path, "clip"))


def same_name(name: str) -> Source:
    """For files in Hugging Face's layout: the key is the parameter's name."""
    return name, lambda tensor: tensor


def is_position_ids(key: str) -> bool:
    """Whether a key is that of position ids, which older files store beside the weights."""
    return key.endswith(".position_ids")


def open_clip_source(name: str) -> Source:
    """The key of CLIPModel's parameter `name` in open_clip's layout.

    There q, k and v are thirds of one matrix, and projections are transposed.
    """
    tower, _, rest = name.partition("_model.")
    if not rest:
        match name:
            case "visual_projection.weight":
                return "visual.proj", lambda t: t.T
            case "text_projection.weight":
                return "text_projection", lambda t: t.T
        return same_name(name)  # logit_scale
    prefix = "visual." if tower == "vision" else ""
    for ours, theirs in _OPEN_CLIP_NAMES:
        rest = rest.replace(ours, theirs)
    found = re.fullmatch(r"(.+\.attn)\.([qkv])_proj\.(weight|bias)", rest)
    if found is None:
        return prefix + rest, lambda t: t
    third = "qkv".index(found[2])
    return f"{prefix}{found[1]}.in_proj_{found[3]}", lambda t: t.chunk(3)[third]


_OPEN_CLIP_NAMES = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding", "conv1"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding", "token_embedding"),
    ("pre_layrnorm", "ln_pre"),
    ("post_layernorm", "ln_post"),
    ("final_layer_norm", "ln_final"),
    ("encoder.layers.", "transformer.resblocks."),
    ("self_attn", "attn"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
