"""Prompts that stand for many."""

from collections import Counter

import pytest

from reprise.backend.batch.wildcards import Wildcards
from reprise.backend.core.errors import RepriseError


def every(text, folder=None, count=400):
    made = Wildcards(folder)
    return Counter(made.expand(text, str(seed)) for seed in range(count))


def test_choices():
    assert set(every("a {red|blue} {cat|dog|{big|small} bird}")) == {
        f"a {color} {thing}"
        for color in ("red", "blue")
        for thing in ("cat", "dog", "big bird", "small bird")
    }
    assert set(every("{2$$a|b|c}")) == {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}
    assert set(every("{1-2$$ and $$a|b}")) == {"a", "b", "a and b", "b and a"}
    counts = every("{3::a|b}")
    assert 2 < counts["a"] / counts["b"] < 4.5
    assert set(every("{a|}x")) == {"ax", "x"}


def test_the_same_seed_gives_the_same_prompt():
    one, other = Wildcards(), Wildcards()
    assert [one.expand("{a|b|c}", str(i)) for i in range(9)] == [
        other.expand("{a|b|c}", str(i)) for i in range(9)
    ]


def test_plain_texts_are_left_alone():
    made = Wildcards()
    for text in ("a cat", "a {cat}", "__name__", "a | b", r"\{a|b\}"):
        assert not made.has(text), text
    assert made.has("{a|b}") and made.has("{2$$a}") and made.has("{x{a|b}}")
    assert made.expand(r"\{a\|b\} {c|c} {d}", "1") == "{a|b} c {d}"


def test_names_are_lines_of_files(tmp_path):
    (tmp_path / "animals.txt").write_text("# a list\ncat\n\n{big|small} dog\n__birds/small__\n")
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "small.txt").write_text("wren\n")
    assert Wildcards(tmp_path).has("a __animals__")
    assert set(every("a __animals__", tmp_path)) == {"a cat", "a big dog", "a small dog", "a wren"}
    assert set(every("__birds/*__", tmp_path)) == {"wren"}
    assert set(every("__../birds__", tmp_path)) == {"__../birds__"}


@pytest.mark.parametrize(
    "text,part",
    [
        ("a {cat|dog", "opens a brace that it does not close"),
        ("a {cat|dog}} x", "closes a brace that is not open"),
        ("{|}", "came out empty"),
        ("__animal__", "did you mean 'animals'"),
        ("__itself__", "may name itself"),
        ("{" * 30 + "a|b" + "}" * 30, "more than 20"),
    ],
)
def test_broken_texts_are_refused(tmp_path, text, part):
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "animals.txt").write_text("cat\n")
    (folder / "itself.txt").write_text("__itself__\n")
    with pytest.raises(RepriseError) as caught:
        Wildcards(folder).expand(text, "1")
    assert part in str(caught.value)
