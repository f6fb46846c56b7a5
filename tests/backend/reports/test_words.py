"""Which words count as added."""

from reprise.backend.reports.words import mark_added_words


def added(before, after):
    return [text for text, is_added in mark_added_words(before, after) if is_added]


def test_the_users_words_are_not_marked():
    assert mark_added_words("three red circles", "three large red circles, on a grey ground") == [
        ("three", False),
        ("large", True),
        ("red circles,", False),
        ("on a grey ground", True),
    ]


def test_case_punctuation_and_order_make_no_difference():
    assert (
        added("A red Circle.", "on a grey ground, a red circle") == ["on a", "grey ground,"]
        or added("A red Circle.", "on a grey ground, a red circle") == ["on", "grey ground, a"]
        or added("A red Circle.", "on a grey ground, a red circle") == ["on a grey ground,"]
    )
    assert added("blue star left of green heart", "green heart right, blue star left of") == ["right,"]


def test_a_word_twice_is_once_the_users():
    assert added("a star", "a star and a star") in (["and a star"], ["a star and"])


def test_nothing_lost():
    after = "  one   two\nthree  "
    assert " ".join(text for text, _ in mark_added_words("two", after)) == "one two three"
    assert mark_added_words("x", "") == [] and mark_added_words("", "y") == [("y", True)]
