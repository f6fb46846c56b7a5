"""The tokenizers of the embedded refiner: what its encoder reads with, and what its decoder writes with.

Every word of the world, styles too, is one token of either; any other text falls apart into letters or bytes.
The networks are "shapeworld" of `rewriters/prip_presets.py`, with random weights; `reprise train` with
prip-decoder, prip-encoder and ppo trains them (`trainers/configs`), on what `reprise shapeworld users` writes
and `reprise picture-log` draws.
"""

from __future__ import annotations

from typing import Any

from ..styles import STYLE_WORDS
from .rewriter import byte_pairs
from .tokenizers import t5_tokenizer, words

VOCABULARY = 1024
CONTEXT = 512


def tokenizers() -> tuple[Any, Any]:
    """(reader, a T5Tokenizer; writer, a Qwen2Tokenizer)."""
    return t5_tokenizer(STYLE_WORDS), writer()


def writer() -> Any:
    """A word is the same token wherever it stands behind a space; so is a comma behind a word."""
    known = [*words(), *STYLE_WORDS]
    text = [" ".join(known), ", ".join(known)]
    return byte_pairs([*text, "Picture:", "\nPrompt:\n"], known, VOCABULARY, CONTEXT)
