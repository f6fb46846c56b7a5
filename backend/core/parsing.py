"""JSON and YAML from outside: whatever is wrong with a text is a ValueError of one line.

The libraries raise more than that: RecursionError for a deeply nested text, and PyYAML KeyError, TypeError or
AttributeError for a scalar that does not fit its tag, such as `!!timestamp x`.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import yaml

MOST_YAML = 2**20  # characters; PyYAML reads some 100,000 in a second
MOST_OPEN = 200  # brackets that are open at once: PyYAML takes minutes for many thousands
MOST_VALUES = 100_000  # of a YAML text with its aliases written out: ten lines can stand for billions
_HALF_LETTER = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes it


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, in UTF-8. Raises ValueError.

    NaN and Infinity are read, as Python and ComfyUI write them. Half a letter ("\\ud800") is refused: it
    could not be written again.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text)
        if _HALF_LETTER.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text in it holds half a letter") from None
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; None for an empty one. Raises ValueError, with the line if it is known."""
    if len(text) > MOST_YAML:
        raise ValueError(f"it has {len(text):,} characters; the limit is {MOST_YAML:,}")
    depth = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    if max(depth, default=0) > MOST_OPEN:
        raise ValueError("it is nested too deeply")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{line}{getattr(error, 'problem', None) or 'it is not YAML'}") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"a value does not fit its type: {error}") from error
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Raises ValueError for more than `MOST_VALUES` values, and for a value that contains itself."""
    todo, count = [value], 0
    while todo:
        one = todo.pop()
        count += 1
        if count + len(todo) > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES:,} values, or for endlessly many")
        if isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple, set)):
            todo += one
