"""Encodes each prompt alone and once, inside a pipeline's own call.

A pipeline encodes the prompts of its batch together: the same prompt again for each candidate, and many pad a
short prompt to the length of its company, which changes its embeddings' shape, and in some (CogView4) the
picture. Here the pipeline's `encode_prompt` is replaced by one that encodes each distinct prompt in a batch
of its own, keeps the result, and joins the rows. Where their shapes differ it raises `Ragged`: such prompts
are drawn in batches apart.

Where `encode_prompt` is missing or its result cannot be joined (Kandinsky 5's cumulative lengths), a batch
holds a single prompt (but for aMUSEd, which pads all prompts to one length), and the text encoders evaluate
each distinct row once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .batch_layout import ITEMS, NotMaskable, call_arguments
from .row_mask import Forwards
from .tokens import uses_masked_tokens

if TYPE_CHECKING:
    from torch import nn

_CACHED_PROMPTS = 64  # prompts whose embeddings stay in memory
_TEXT_BYTES = 256 * 2**20  # of text encoders' results, with all their hidden states


class Ragged(BaseException):
    """The prompts of a batch have embeddings of different shapes: `kinds[i]` is equal for those of one
    shape."""

    def __init__(self, kinds: list[Any]):
        super().__init__("prompts of one batch have embeddings of different lengths")
        self.kinds = kinds
        self.rows: list[int] = []  # of the search; whoever called the pipeline knows them


class NotJoinable(NotMaskable):
    """The embeddings of several prompts cannot be joined."""


class PromptEncoder:
    """Stands for a pipeline's `encode_prompt`; the embeddings of the last prompts stay in memory.

    `joins` says whether different prompts may share a batch; where they may not, `wraps` is off.
    """

    def __init__(self, pipeline: Any):
        self.wraps: bool = callable(getattr(pipeline, "encode_prompt", None))
        self.joins = self.wraps or uses_masked_tokens(pipeline.scheduler)
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._layouts: dict[Any, dict[tuple, int]] = {}
        self._texts: OrderedDict[Any, Any] = OrderedDict()

    def stop_joining(self) -> None:
        self.wraps = self.joins = False

    def install(self, pipeline: Any) -> None:
        """Replace the `encode_prompt` of a pipeline, which is a copy that nobody else uses."""
        if not self.wraps:
            return
        own = pipeline.encode_prompt
        signature = inspect.signature(own)

        @functools.wraps(own)
        def encode_prompt(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            return self._encode(own, type(pipeline).__name__, dict(given))

        pipeline.encode_prompt = encode_prompt

    def _encode(self, own: Callable[..., Any], pipeline: str, given: dict[str, Any]) -> Any:
        prompt = next((given[name] for name in ("prompt", "prompts") if name in given), None)
        if not isinstance(prompt, list):
            return own(**given)
        count = len(prompt)
        each = [name for name, value in given.items() if _is_texts(value) and len(value) == count]
        rest = {name: value for name, value in given.items() if name not in (*each, "batch_size")}
        shared = (pipeline, tuple((name, _fixed(value)) for name, value in sorted(rest.items())), tuple(each))

        def encode(texts: tuple[str, ...], times: int = 1) -> Any:
            size = {"batch_size": times} if "batch_size" in given else {}  # HunyuanImage is told it
            return own(**rest, **size, **{name: [text] * times for name, text in zip(each, texts)})

        results = []
        for i in range(count):
            texts = tuple(given[name][i] for name in each)
            key = (shared, texts)
            if key not in self._kept:
                self._kept[key] = encode(texts)
                if len(self._kept) > _CACHED_PROMPTS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            results.append(self._kept[key])
            # A mask is left out where it hides nothing, so results of one pipeline may be of several kinds.
            kind = (shared, _kind(results[-1]))
            if kind not in self._layouts:
                self._layouts[kind] = embedding_layout(results[-1], encode(texts, 2))
        kinds = [_shapes(result) for result in results]
        if any(kind != kinds[0] for kind in kinds):
            raise Ragged(kinds)
        return joined(results, (), self._layouts[shared, _kind(results[0])])

    @contextlib.contextmanager
    def once(self, encoders: Sequence[nn.Module]):
        """A context in which text encoders evaluate each distinct row in a batch of its own, and remember
        it."""

        def forward(own: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
            import torch

            given = call_arguments(args, kwargs)
            carry = {k for k, value in given.items() if isinstance(value, torch.Tensor) and value.ndim > 1}
            lengths = {len(given[name]) for name in carry}
            if len(lengths) != 1:
                return own(*args, **kwargs)
            found = []
            for row in range(lengths.pop()):
                one = {k: value[row : row + 1] if k in carry else value for k, value in given.items()}
                key = (id(getattr(own, "__self__", own)), _fixed(one))
                if key not in self._texts:
                    self._texts[key] = own(*[one.pop(i) for i in range(len(args))], **one)
                    while len(self._texts) > 1 and sum(map(_bytes, self._texts.values())) > _TEXT_BYTES:
                        self._texts.popitem(last=False)
                self._texts.move_to_end(key)
                found.append(self._texts[key])
            return _stack(found)

        with Forwards(encoders, forward):
            yield


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The pipeline's text encoders."""
    from .devices import models_of

    return [part for name, part in models_of(pipeline).items() if "text_encoder" in name or name == "bert"]


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, str) for one in value)


def _fixed(value: Any) -> Any:
    """Something hashable that differs where the value does."""
    import torch

    if isinstance(value, torch.Tensor):
        return (
            tuple(value.shape),
            str(value.dtype),
            value.detach().cpu().contiguous().flatten().numpy().tobytes(),
        )
    if isinstance(value, dict):
        return tuple((name, _fixed(one)) for name, one in sorted(value.items(), key=str))
    if isinstance(value, (list, tuple)):
        return tuple(map(_fixed, value))
    return repr(value)


def embedding_layout(one: Any, two: Any) -> dict[tuple, int]:
    """Which results of `encode_prompt` carry the batch, from those for a prompt once and twice.

    Raises NotJoinable where they cannot be joined.
    """
    layout: dict[tuple, int] = {}
    _compare(one, two, (), layout)
    return layout


def _compare(one: Any, two: Any, path: tuple, layout: dict[tuple, int]) -> None:
    """As `batch_layout.find_layout`, with the same prompt once and twice."""
    if hasattr(one, "shape") and hasattr(two, "shape"):
        if one.ndim != two.ndim:
            raise NotJoinable("its prompts' embeddings cannot be joined")
        grown = [i for i, (x, y) in enumerate(zip(one.shape, two.shape)) if x != y]
        if len(grown) > 1 or any((one.shape[i], two.shape[i]) != (1, 2) for i in grown):
            raise NotJoinable("its prompts' embeddings cannot be joined")
        if grown:
            layout[path] = grown[0]
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if (len(one), len(two)) == (1, 2):
            layout[path] = ITEMS
        elif len(one) != len(two):
            raise NotJoinable("its prompts' embeddings cannot be joined")
        else:
            for i, (x, y) in enumerate(zip(one, two)):
                _compare(x, y, (*path, i), layout)
    elif type(one) is not type(two):
        raise NotJoinable("its prompts' embeddings cannot be joined")


def joined(results: list[Any], path: tuple, layout: dict[tuple, int]) -> Any:
    import torch

    first = results[0]
    if path in layout:
        if layout[path] == ITEMS:
            return [item for one in results for item in one]
        return torch.cat(results, layout[path])
    if isinstance(first, (list, tuple)):
        return type(first)(joined([one[i] for one in results], (*path, i), layout) for i in range(len(first)))
    return first


def _shapes(value: Any) -> Any:
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(map(_shapes, value))
    return type(value).__name__


def _kind(value: Any) -> Any:
    """A result of `encode_prompt` without its sizes."""
    if hasattr(value, "ndim"):
        return value.ndim
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    return type(value).__name__


def _stack(results: list[Any]) -> Any:
    """A text encoder's outputs of single rows -> of their batch."""
    import torch

    first = results[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(results) if first.ndim and len(first) == 1 else first
    if isinstance(first, dict):
        return type(first)(**{name: _stack([one[name] for one in results]) for name in first})
    if isinstance(first, (list, tuple)):
        return type(first)(_stack([one[i] for one in results]) for i in range(len(first)))
    return first


def _bytes(value: Any) -> int:
    if hasattr(value, "element_size"):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes, items))
