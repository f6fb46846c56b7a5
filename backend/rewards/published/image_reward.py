"""ImageReward v1.0: predicts which of several pictures of one prompt people prefer, by BLIP.

Source: ImageReward (arXiv 2304.05977), package image-reward 1.5, checkpoint THUDM/ImageReward. BERT encodes
the prompt with cross-attention to a ViT-L/16; five linear layers map its first token to a number, which is
centred and scaled as published.
Departs from it: an empty prompt is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.errors import CheckpointError
from ...core.types import RewardSpec
from ..base import LearnedJudge, linear_head
from .checkpoint import Source, fill, placement, read_weights
from .files import locate
from .preprocess import center_crop

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer
    from torch import Tensor, nn

SIZE = 224
CONTEXT = 35  # tokens; longer prompts are cut off
MEAN, STD = 0.16717362830052426, 1.0333394966054072


class ImageReward(LearnedJudge):
    """About -2 to 2, higher is better; 0 is the mean of its training pictures. Reads 35 tokens of a
    prompt."""

    spec = RewardSpec("image-reward", -2.0, 2.0)
    vision: ClassVar[dict[str, Any]] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": SIZE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    text: ClassVar[dict[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "encoder_hidden_size": 1024,
        "vocab_size": 30524,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    head = (1024, 128, 64, 16)  # widths of the head's layers

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
    ):
        """`path`: ImageReward.pt or its folder; by default where `files.find` looks.

        `device` and `dtype` as in `checkpoint.placement`. Raises CheckpointError.
        """
        weights, vocabulary = locate("image-reward", path)
        self.batch_size = batch_size
        self.tokenizer = bert_tokenizer(vocabulary, self.text["vocab_size"])
        where, kind = placement(device, dtype)
        self.model = self.load(read_weights(weights), weights, where, kind)

    @classmethod
    def load(cls, tensors: dict[str, Tensor], path: Path, device, dtype) -> nn.Module:
        """The model with the published tensors. Raises CheckpointError for other tensors."""
        return fill(
            cls.build,
            tensors,
            source,
            unused,
            description="ImageReward v1.0",
            path=path,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def build(cls) -> nn.Module:
        from torch import nn
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        return nn.ModuleDict(
            {
                "vision": BlipVisionModel(BlipVisionConfig(**cls.vision)),
                "text": BlipTextModel(BlipTextConfig(**cls.text), add_pooling_layer=False),
                "mlp": linear_head(cls.text["hidden_size"], cls.head),
            }
        )

    def prepare(self, picture: Image) -> Tensor:
        return center_crop(picture, SIZE)

    def rate(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        features = self.model["vision"](pixel_values=pixels).last_hidden_state
        read = self.tokenizer.encode_batch(list(prompts))
        longest = max(sum(row.attention_mask) for row in read)  # the rest is padding, masked in all rows
        ids = torch.tensor([row.ids[:longest] for row in read], device=pixels.device)
        mask = torch.tensor([row.attention_mask[:longest] for row in read], device=pixels.device)
        first = self.model["text"](
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=pixels.device),
            is_decoder=False,
        ).last_hidden_state[:, 0]
        return (self.model["mlp"](first)[:, 0].float() - MEAN) / STD


def bert_tokenizer(vocabulary: Path, size: int) -> Tokenizer:
    """BERT's uncased WordPiece tokenizer from vocab.txt, plus BLIP's [DEC] and [ENC]: `size` tokens in all.

    Pads and truncates to 35 tokens. Raises CheckpointError for another vocabulary.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    try:
        words = vocabulary.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{vocabulary} cannot be read: {error}") from error
    ids = {word: i for i, word in enumerate([*words, "[DEC]", "[ENC]"])}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
    if len(ids) != size or not all(word in ids for word in special) or ids["[PAD]"] != 0:
        raise CheckpointError(
            f"{vocabulary} is not bert-base-uncased's vocab.txt: it has {len(words)} "
            f"lines, expected {size - 2}, [PAD] first"
        )
    word_piece = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)  # noqa: S106 a word
    tokenizer = Tokenizer(word_piece)
    tokenizer.add_special_tokens(list(special))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.enable_truncation(CONTEXT)
    tokenizer.enable_padding(length=CONTEXT, pad_id=0, pad_token="[PAD]")  # noqa: S106 a word of the vocabulary
    return tokenizer


def source(name: str) -> Source:
    """The key in ImageReward.pt of the parameter `name`."""
    part, _, rest = name.partition(".")
    if part == "mlp":
        return f"mlp.layers.{rest}", lambda t: t
    if part == "text":
        return f"blip.text_encoder.{rest}", lambda t: t
    for ours, theirs in _VISION_NAMES:
        rest = rest.replace(ours, theirs)
    return f"blip.visual_encoder.{rest}", lambda t: t


_VISION_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers.", "blocks."),
    ("post_layernorm", "norm"),
    ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn.", "attn."),
)


def unused(key: str) -> bool:
    """Keys that are not needed: BLIP's heads for contrastive training, and position ids."""
    return key.startswith(("blip.vision_proj.", "blip.text_proj.")) or key.endswith(".position_ids")
