"""Which words count as added."""

from reprise.backend.reports.added_words import mark_added_words


def added(before, after):
    return [text for text, is_added in mark_added_words(before, after) if is_added]


def test_only_added_words_are_marked():
    assert mark_added_words("three red circles", "three large red circles, on a grey ground") == [
        ("three", False),
        ("large", True),
        ("red circles,", False),
        ("on a grey ground", True),
    ]


def test_case_punctuation_and_order_are_ignored():
    assert (
        added("A red Circle.", "on a grey ground, a red circle") == ["on a", "grey ground,"]
        or added("A red Circle.", "on a grey ground, a red circle") == ["on", "grey ground, a"]
        or added("A red Circle.", "on a grey ground, a red circle") == ["on a grey ground,"]
    )
    assert added("blue star left of green heart", "green heart right, blue star left of") == ["right,"]


def test_a_repeated_word_counts_as_added_once():
    assert added("a star", "a star and a star") in (["and a star"], ["a star and"])


def test_no_word_is_lost():
    after = "  one   two\nthree  "
    assert " ".join(text for text, _ in mark_added_words("two", after)) == "one two three"
    assert mark_added_words("x", "") == [] and mark_added_words("", "y") == [("y", True)]
