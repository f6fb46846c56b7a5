"""The embedded refiner's tokenizers: whole words, styles too, and any other text."""

import pytest
import torch

from reprise.backend.rewriters.prip.presets import build, build_vision_tower, find_preset
from reprise.backend.shapeworld.styles import STYLE_WORDS
from reprise.backend.shapeworld.tokenizers import CONTEXT, refiner_tokenizers, vocabulary_words
from reprise.backend.training.prip.pivots import TOO_ALIKE, variation


@pytest.fixture(scope="module")
def both():
    return refiner_tokenizers()


def test_words_and_styles_are_one_token_each(both):
    reader, writer = both
    for word in (*vocabulary_words(), *STYLE_WORDS):
        assert len(reader(word)["input_ids"]) == 2, word  # with its end
        assert len(writer(word)["input_ids"]) == len(writer(f" {word}")["input_ids"]) == 1, word


@pytest.mark.parametrize(
    "text", ["a photo of a red circle, in the center, pastel, glossy", "Qué? 12 zebras\n猫"]
)
def test_texts_round_trip(text, both):
    reader, writer = both
    assert writer.decode(writer(text)["input_ids"]) == text
    assert reader.unk_token_id not in reader("12 zebras, glossy")["input_ids"]
    assert writer.eos_token_id is not None and writer.eos_token_id not in writer(text)["input_ids"]


def test_the_preset_works_with_these_tokenizers(both):
    """A prompt's beginning is what it is in a whole prompt, token by token."""
    model = build(find_preset("shapeworld"), *both)
    assert model.decoder.config.max_position_embeddings == CONTEXT
    start, whole = (model.decoder_ids(text) for text in ("a red circle", "a red circle, pastel"))
    assert whole[: len(start)] == start
    before, after = model.template
    assert len(before) + len(after) < 10 and model.continuation_tokens.sum() > len(STYLE_WORDS)


def test_the_presets_untrained_tower_distinguishes_pictures(both):
    """Or it would never learn: transformers' own initial weights of this tower are all but 0."""
    torch.manual_seed(0)
    tower = build_vision_tower(find_preset("shapeworld")).eval()
    images = torch.rand(4, 1, 1, 3).expand(-1, 128, 128, -1)
    with torch.no_grad():
        seen = tower(images)
    assert variation(seen.mean(0), seen.std(0)) > 2 * TOO_ALIKE
