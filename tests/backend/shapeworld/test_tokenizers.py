"""The tiny tokenizers: every word whole, any text readable, files that load again."""

import pytest

from reprise.backend.shapeworld.tokenizers import clip_tokenizer, t5_tokenizer, vocabulary_words


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_every_word_is_one_token(make):
    tokenizer = make()
    assert [word for word in vocabulary_words() if len(tokenizer.tokenize(word)) != 1] == []


def test_clip_ids_start_end_and_pad_as_in_clip():
    tokenizer = clip_tokenizer()
    ids = tokenizer("a red circle", padding="max_length", max_length=8).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[4:] == [tokenizer.eos_token_id] * 4


def test_t5_ids_end_and_pad_as_in_t5():
    tokenizer = t5_tokenizer()
    assert tokenizer("a red circle", padding="max_length", max_length=6).input_ids[-3:] == [1, 0, 0]
    assert tokenizer.decode(tokenizer("Zebra 7!").input_ids, skip_special_tokens=True) == "Zebra 7!"


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_a_saved_tokenizer_loads_unchanged(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = "four large blue stars: one at the top left and one on the right"
    assert again(text).input_ids == tokenizer(text).input_ids


def test_clip_ids_are_the_same_in_every_process():
    """Weights of one process are for the ids of all: the learner's own hash maps are seeded at random."""
    assert clip_tokenizer()("a large red circle").input_ids == [805, 64, 776, 583, 758, 806]


def test_the_committed_tokenizers_are_reproduced():
    from reprise.backend.renderers.shapeworld import WEIGHTS

    for make, folder in ((clip_tokenizer, "tokenizer"), (t5_tokenizer, "tokenizer_2")):
        made = make()
        assert type(made).from_pretrained(WEIGHTS / folder).get_vocab() == made.get_vocab()
