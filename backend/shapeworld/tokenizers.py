"""Tokenizers with small vocabularies for the embedded models, in transformers' own classes and file formats.

Every word of ShapeWorld's captions and prompts is one token; other words are split into letters. The small
vocabulary keeps the embedding tables small.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

from .captions import NUMBERS, plural
from .scenes import COLORS, GROUNDS, PLACES, SHAPES
from .styles import STYLE_WORDS

CLIP_LENGTH = 77
# Words of prompts and rewrites besides the names of colours, shapes, grounds and places.
_WORDS = """
a an the of and on in at to with one is are two photo picture image several some few background
above below left right small large side by next between over under beneath top bottom center
middle corner each other apart single shape shapes object objects plain simple clean sharp clear
detailed highly high quality beautiful professional photography realistic masterpiece focus
colour color colored solid bright only no other nothing else evenly spaced row column
""".split()


def vocabulary_words() -> list[str]:
    """All words that are one token, sorted, without duplicates."""
    named = [*COLORS, *GROUNDS, *SHAPES, *map(plural, SHAPES), *NUMBERS.values()]
    named += [part for place in PLACES for part in place.split()]
    return sorted({*_WORDS, *named})


def t5_tokenizer(more: Sequence[str] = ()):
    """T5Tokenizer (Unigram). Ids: <pad> 0, </s> 1, <unk> 2, then words (including `more`), then letters."""
    from transformers import T5Tokenizer

    letters = string.ascii_lowercase + string.ascii_uppercase + string.digits
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocab += [("\u2581" + word, -2.0) for word in sorted({*vocabulary_words(), *more}) if len(word) > 1]
    vocab += [(mark, -2.0) for mark in ",.:;!?'\"()-"]
    # Letters cost enough that a known word is always one token.
    vocab += [("\u2581a", -2.0), ("\u2581", -4.0)] + [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def clip_tokenizer(length: int = CLIP_LENGTH):
    """CLIPTokenizer (byte-level BPE) with merges that make every word one token; pads to `length`."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    last = [letter + "</w>" for letter in letters]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        # Named explicitly: otherwise their ids, and the order of ties, depend on a randomly seeded hash map.
        special_tokens=last,
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary_words(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab = dict(learned["vocab"])
    for token in [*last, "<|startoftext|>", "<|endoftext|>"]:
        vocab.setdefault(token, len(vocab))
    merges: Any = [tuple(pair) for pair in learned["merges"]]  # typed as text, but BPE takes pairs
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


VOCABULARY = 1024


CONTEXT = 512


def refiner_tokenizers() -> tuple[Any, Any]:
    """The refiner's tokenizers: (encoder's T5Tokenizer, decoder's Qwen2Tokenizer)."""
    return t5_tokenizer(STYLE_WORDS), decoder_tokenizer()


def decoder_tokenizer() -> Any:
    """The refiner's Qwen2Tokenizer. A word after a space is always the same token, and so is a comma after a
    word."""
    known = [*vocabulary_words(), *STYLE_WORDS]
    text = [" ".join(known), ", ".join(known)]
    return byte_pair_tokenizer([*text, "Picture:", "\nPrompt:\n"], known, VOCABULARY, CONTEXT)


def byte_pair_tokenizer(
    text: Sequence[str], whole_words: Sequence[str], vocabulary: int, context: int
) -> Any:
    """A Qwen2Tokenizer for chats, with merges learned from `text` and the words in `whole_words`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AddedToken, Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 16,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # Each whole word counts equally often, in addition to its frequency in the text.
    forms = [form for word in whole_words for form in (f" {word}", word, word.capitalize())]
    bpe.train_from_iterator([*text, *forms * 5], trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    made = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        unk_token="<|endoftext|>",  # noqa: S106 words of the vocabulary
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=context,
        padding_side="left",
    )
    made.add_tokens([AddedToken("<|im_start|>", special=True, normalized=False)], special_tokens=True)
    return made
