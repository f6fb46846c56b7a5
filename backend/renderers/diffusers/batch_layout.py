"""Which arguments of a denoiser carry the batch, found out by calling its pipeline with two and three
candidates.

Pipelines pass their denoisers tensors whose batch is not the first dimension (HiDream's Llama states), lists
with an item for each row (Z-Image, Qwen-Image's shapes), and position ids with a batch dimension (FLUX.2) or
without (FLUX.1). No list of names can know that. So the arguments of the first call with 2 candidates are
compared with those of the first call with 3: a dimension that grew from 2 k to 3 k carries the batch, k rows
for each candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ITEMS = -1  # in a layout: not a dimension of a tensor, but a list with an item for each row
Path = tuple[Any, ...]
Layout = Mapping[Path, int]  # place of an argument -> its batch dimension, or ITEMS
_MOST_ROWS = 8  # of one candidate in one call; a dimension that grows faster counts tokens, not rows


class NotMaskable(Exception):
    """The rows of a call cannot be told apart. The message says why."""


class FirstCall(BaseException):
    """Raised at the first call of a denoiser, with its arguments, to leave the pipeline there. No Exception,
    so that no pipeline logs it."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        super().__init__("stopped at the denoiser")
        self.arguments = call_arguments(args, kwargs)


def call_arguments(args: tuple, kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    """The arguments of a call by position or name."""
    return {**dict(enumerate(args)), **kwargs}


def find_layout(two: Any, three: Any) -> dict[Path, int]:
    """The layout of a call, from its arguments with 2 and with 3 candidates; neither is changed.

    Raises NotMaskable where an argument changes in another way, or where candidates depend on each other.
    """
    layout: dict[Path, int] = {}
    _compare(two, three, (), layout)
    if not layout:
        raise NotMaskable("no argument of its denoiser carries the batch")
    rows = {_length(at(two, path), place) for path, place in layout.items()}
    if len(rows) > 1:
        raise NotMaskable("arguments of its denoiser carry different numbers of rows")
    # Both calls hold the same second candidate, beside others.
    k = rows.pop() // 2
    for path, place in layout.items():
        for copy in range(k):
            one = take(at(two, path), place, [2 * copy + 1])
            other = take(at(three, path), place, [3 * copy + 1])
            if not _equal(one, other):
                raise NotMaskable("its candidates depend on each other")
    return layout


def at(arguments: Any, path: Path) -> Any:
    for key in path:
        arguments = arguments[key]
    return arguments


def take(value: Any, place: int, rows: Sequence[int]) -> Any:
    """The rows of a tensor along its batch dimension `place`, or of a list (ITEMS)."""
    if place == ITEMS:
        return type(value)(value[row] for row in rows)
    if place == 0:
        return value[list(rows)]
    import torch

    return value.index_select(place, torch.tensor(list(rows), device=value.device))


def batch_length(arguments: Any, layout: Layout) -> int | None:
    """The number of rows of a call; None where it has no argument of the layout."""
    for path, place in layout.items():
        try:
            return _length(at(arguments, path), place)
        except (KeyError, IndexError, TypeError, AttributeError):
            continue
    return None


def select_rows(value: Any, rows: Sequence[int], batch: int, layout: Layout, path: Path = ()) -> Any:
    """A call's arguments of the `rows` alone, of `batch`. What the layout does not know, because it was not
    given in the first call, is taken to carry the batch in its first dimension if that has its length."""
    if path in layout:
        return take(value, layout[path], rows) if _counts(value, layout[path], batch) else value
    if isinstance(value, dict):
        return {key: select_rows(item, rows, batch, layout, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(select_rows(item, rows, batch, layout, (*path, i)) for i, item in enumerate(value))
    return value


def complete(layout: Layout, arguments: Any, batch: int) -> dict[Path, int]:
    """The layout, with the tensors and lists of `arguments` that were not there when it was found out."""
    found = dict(layout)
    seen = {path[:1] for path in layout}
    for key, value in arguments.items():
        if (key,) not in seen and not any(path[:1] == (key,) for path in found):
            for path, item in _leaves(value, (key,)):
                if _counts(item, 0, batch):
                    found[path] = 0
    return found


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, i))
    else:
        yield path, value


def _compare(two: Any, three: Any, path: Path, layout: dict[Path, int]) -> None:
    name = ".".join(map(str, path))
    if hasattr(two, "shape") and hasattr(three, "shape"):
        a, b = tuple(two.shape), tuple(three.shape)
        if len(a) != len(b):
            raise NotMaskable(f"{name} has {len(a)} dimensions with 2 candidates and {len(b)} with 3")
        grown = [i for i, (x, y) in enumerate(zip(a, b)) if x != y]
        if len(grown) > 1 or any(not _is_batch(a[i], b[i]) for i in grown):
            raise NotMaskable(f"{name} has the shape {a} with 2 candidates and {b} with 3")
        if grown:
            layout[path] = grown[0]
    elif isinstance(two, (list, tuple)) and isinstance(three, (list, tuple)):
        if len(two) == len(three):
            for i, (x, y) in enumerate(zip(two, three)):
                _compare(x, y, (*path, i), layout)
        elif _is_batch(len(two), len(three)):
            layout[path] = ITEMS
        else:
            raise NotMaskable(f"{name} has {len(two)} items with 2 candidates and {len(three)} with 3")
    elif isinstance(two, dict) and isinstance(three, dict) and two.keys() == three.keys():
        for key in two:
            _compare(two[key], three[key], (*path, key), layout)
    elif type(two) is not type(three):
        raise NotMaskable(f"{name} changes with the number of candidates")
    elif getattr(two, "__dict__", None) and type(two).__module__.startswith("diffusers"):
        # Such as a cache of keys and values, which is written while rows are evaluated.
        raise NotMaskable(f"{name} is a {type(two).__name__}, whose rows are not known")
    elif isinstance(two, (int, float)) and two != three:
        raise NotMaskable(f"{name} changes with the number of candidates")


def _is_batch(two: int, three: int) -> bool:
    return two % 2 == 0 and three * 2 == two * 3 and 2 <= two <= 2 * _MOST_ROWS


def _length(value: Any, place: int) -> int:
    return len(value) if place == ITEMS else int(value.shape[place])


def _counts(value: Any, place: int, batch: int) -> bool:
    try:
        return _length(value, place) == batch
    except (AttributeError, IndexError, TypeError):
        return False


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
