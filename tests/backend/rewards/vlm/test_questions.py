"""Splitting prompts by rule, and reading what models write."""

import pytest

from reprise.backend.rewards.vlm.questions import read_grade, read_parts, read_yes_no, split_prompt


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", ("a cat",)),
        ("x", ("x",)),
        ("...", ("...",)),
        (
            "a photo of a red cube left of two balls, at night",
            ("a red cube", "two balls", "a red cube left of two balls", "at night"),
        ),
        ("three apples and two oranges", ("three apples", "two oranges")),
        ("a black and white cat", ("a black and white cat",)),
        ("a big, red ball", ("a big, red ball",)),
        (
            "an oil painting of a dog with a hat; dramatic light",
            ("an oil painting", "a dog", "a hat", "a dog with a hat", "dramatic light"),
        ),
        ("A dog runs. The sky is blue.", ("A dog runs", "The sky is blue")),
        (
            "a cat on a mat under the tree",
            ("a cat", "a mat", "the tree", "a mat under the tree", "a cat on a mat under the tree"),
        ),
        ("a cat, a cat and a Cat", ("a cat",)),
        ("Ein roter Kreis\n über   Wasser", ("Ein roter Kreis über Wasser",)),
        ("一只红色的猫", ("一只红色的猫",)),
    ],
)
def test_prompts_are_split_into_parts(prompt, parts):
    assert split_prompt(prompt) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("- two cats\n* a red hat.\n3) night", ("two cats", "a red hat", "night")),
        ("Here is the list:\n1. two cats\n\n2. Two cats", ("two cats",)),
        ('<think>two cats, night</think>\n"two cats"', ("two cats",)),
        ("a dragon\nthe moon", ()),
        ("Are there two cats?", ()),
        ("two " * 30, ()),
        ("", ()),
    ],
)
def test_lists_of_parts_are_parsed(text, parts):
    assert read_parts(text, "two cats with a red hat at night") == parts


def test_parts_in_a_language_without_spaces_are_parsed():
    assert read_parts("- 红色的猫\n- 狗", "一只红色的猫") == ("红色的猫",)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**NO**", False),
        ("No, it shows yes", False),
        ("It is: yes!", True),
        ("<think>no</think>\nyes", True),
        ("nothing", None),
        ("yesterday", None),
        ("", None),
        ("I see it", None),
        ("There is no doubt about it", None),
    ],
)
def test_yes_and_no_are_parsed(text, yes):
    assert read_yes_no(text) is yes


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("8", 8),
        ("0", 0),
        ("10", 10),
        ("10/10", 10),
        ("**7.5**", 7.5),
        ("7,5 von 10", 7.5),
        ("Score: 6", 6),
        ("I would rate it 8 out of 10, for 3 apples are there.", 8),
        ("The rating is 4.", 4),
        ("8. The three of 4 apples", 8),
        ("It deserves 9 points", 9),
        ("<think>2 or 3</think>5", 5),
        ("11", None),
        ("-3", None),
        ("7 or 8", None),
        ("7-8", None),
        ("Score: 7 to 8", None),
        ("3/10 or 4/10", None),
        ("between 7 and 8", None),
        ("good", None),
        ("", None),
        ("8/100", None),
        ("80%", None),
        ("7.5 out of 100", None),
        ("score: -1", None),
    ],
)
def test_grades_are_parsed(text, grade):
    assert read_grade(text) == grade
