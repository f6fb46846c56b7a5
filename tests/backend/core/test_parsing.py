"""JSON and YAML from outside: one kind of error, and no text that takes all memory or time."""

import time

import pytest

from reprise.backend.core.parsing import parse_json, parse_yaml

# Ten lines that stand for 10**10 values.
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5_000, "digits"),
        ('{"a": "\\ud800"}', "half a letter"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_cannot_be_read_is_a_value_error(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_json_is_read_with_a_byte_order_mark_with_nan_and_with_whole_letters():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_json('["\\ud83d\\ude00"]') == ["😀"]
    assert parse_json("[NaN, 1]")[1] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [1", "line 1: expected"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 3_000 + "a", "nested too deeply"),
        ("a: 2001-99-99", "does not fit its type: month must be in 1..12"),
        ("a: !!bool x", "does not fit its type"),
        ("a: !!timestamp x", "does not fit its type"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("&a [*a]", "endlessly many"),
        (LAUGHS, "more than 100,000 values"),
        ("a" * (2**20 + 1), "1,048,577 characters"),
    ],
)
def test_yaml_that_cannot_be_read_is_a_value_error_at_once(text, why):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)
    assert time.perf_counter() - started < 5


def test_yaml_may_name_parts_that_it_uses_again():
    assert parse_yaml("base: &base {n: 8}\nmore: {<<: *base, m: 1}")["more"] == {"n": 8, "m": 1}
    assert parse_yaml("") is None
