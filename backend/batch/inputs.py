"""What a set may vary: a column's or an option's name -> the inputs of the workflow that it goes to.

A name is one that every workflow has (`prompt`, `negative`, `seed`, `steps`, `cfg`, `width`, `model`, …), the
name of an input that one node alone has, or NODE.INPUT, where NODE is a node's number, title or class. Where
more than one input could be meant, nothing is guessed: the candidates are listed.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import FEW, BadInput, UnknownName
from ..core.types import SEED_RANGE
from ..renderers.comfyui.classes import input_types, output_names
from ..renderers.comfyui.files import ObjectInfo
from ..renderers.comfyui.graph import (
    Graph,
    Socket,
    describe,
    is_link,
    is_sampler,
    shorten,
    split_socket,
    value_at,
)
from ..renderers.comfyui.sockets import NamedSockets, SocketSearch
from ..renderers.comfyui.texts import text_at, texts_of

PROMPT, NEGATIVE, SEED = "prompt", "negative", "seed"
# A usual name -> the names of inputs in ComfyUI's own nodes.
USUAL = {
    "steps": ("steps",),
    "cfg": ("cfg",),
    "guidance": ("guidance",),
    "denoise": ("denoise",),
    "sampler": ("sampler_name",),
    "scheduler": ("scheduler",),
    "width": ("width",),
    "height": ("height",),
    "batch_size": ("batch_size",),
    "length": ("length",),
    "model": ("ckpt_name", "unet_name"),
    "vae": ("vae_name",),
    "lora": ("lora_name",),
    "strength": ("strength_model",),
    "image": ("image",),
}
CLOSE = 0.8  # how like a known name an unknown one must be to be taken for a slip of the pen
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Picture:
    """A picture file of this machine, which goes to a server before the run. Its content names it there."""

    path: Path
    sha256: str

    @property
    def name(self) -> str:
        return self.sha256[:24] + self.path.suffix.lower()


class Inputs:
    """The inputs of the workflow `graph`, which stands in the file `where`; `names` are those that the user
    named. `object_info`, a server's node classes, is asked where the workflow does not say what an input
    holds or an output is."""

    def __init__(
        self,
        where: str,
        graph: Graph,
        names: NamedSockets = NamedSockets(),
        object_info: ObjectInfo | None = None,
    ):
        self.where, self.graph, self.names = where, graph, names
        self._type, self._outputs = input_types(object_info), output_names(object_info)
        self._search = SocketSearch(where, graph, names, self._outputs)
        self._pictures: dict[Path, Picture] = {}

    @cached_property
    def samplers(self) -> tuple[str, ...]:
        return tuple(name for name, node in self.graph.items() if is_sampler(node))

    @cached_property
    def prompts(self) -> tuple[Socket, ...]:
        """Where the prompt goes. Raises BadInput where that is not clear."""
        return tuple(self._search.prompts(self.samplers))

    @cached_property
    def seeds(self) -> tuple[Socket, ...]:
        """Where the seed goes. Raises BadInput where that is not clear."""
        return tuple(self._search.seeds(self.samplers))

    @cached_property
    def own_prompt(self) -> str | None:
        """The prompt in the workflow itself; None where it is not clear which."""
        prompts = self.prompts_or_none()
        return text_at(self.graph, prompts[0]).strip() or None if prompts else None

    @cached_property
    def own_seed(self) -> int:
        """The seed in the workflow itself, else 0."""
        found = [value_at(self.graph, socket) for socket in self.seeds_or_none()]
        return next((one for one in found if isinstance(one, int) and 0 <= one < SEED_RANGE), 0)

    def find(self, name: str, of: str = "") -> tuple[Socket, ...] | None:
        """The inputs that `name` means, or None where it means none. `of` begins messages ("--sweep").

        Raises BadInput where it could mean several, and where it is meant for one and there is none.
        """
        if name == PROMPT:
            return self.prompts
        if name == SEED:
            return self.seeds
        if name == NEGATIVE:
            return self._negative()
        node, key = split_socket(self.graph, name)
        if key and (sockets := self._of_node(node, key)):
            return sockets
        if key and node.isdigit():
            raise UnknownName(f"node in {self.where}{of and f' for {of}'}:", node, self.graph)
        return self._by_input(name)

    def need(self, name: str, of: str) -> tuple[Socket, ...]:
        """As `find`, but what means no input is refused."""
        found = self.find(name, of)
        if found is None:
            raise UnknownName(f"input of {self.where} for {of}:", name, self.known())
        return found

    def check_label(self, column: str, where: str) -> None:
        """Raises UnknownName for a column that means no input, but is nearly the name of one."""
        if difflib.get_close_matches(column.lower(), self.known(), n=1, cutoff=CLOSE):
            raise UnknownName(f"column of {where}:", column, self.known())

    def known(self) -> list[str]:
        """All names that mean an input of this workflow."""
        usual = [name for name in USUAL if self._candidates(name)]
        inputs = {key for node in self.graph.values() for key in node["inputs"]}
        return [PROMPT, NEGATIVE, SEED, *usual, *sorted(inputs - {*usual, PROMPT, NEGATIVE, SEED})]

    def value(self, sockets: Sequence[Socket], value: Any, place: str, folder: Path = Path()) -> Any:
        """`value`, of a file in `folder` or an option, as what the first of `sockets` holds: also a Picture.

        `place` begins the message of BadInput.
        """
        socket = sockets[0]
        node, now = self.graph[socket.node], value_at(self.graph, socket)
        if set(sockets) <= set(self.prompts_or_none()):
            return str(value)
        if (picture := self._picture(node["class_type"], value, folder)) is not None:
            return picture
        kind = type(now)
        if is_link(now) or now is None or (kind is int and not _is_whole(value)):
            said = self._type(node["class_type"], socket.input)
            kind = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "STRING": str, "COMBO": str}.get(
                said or "", kind
            )
        if socket in self.seeds_or_none():
            kind = int
        try:
            return _converted(value, kind)
        except ValueError as error:
            raise BadInput(
                f"{place}: {socket} ({describe(node)}) takes {error}, got {str(value)[:60]!r}"
            ) from None

    def prompts_or_none(self) -> tuple[Socket, ...]:
        return self._prompts_or_none

    def seeds_or_none(self) -> tuple[Socket, ...]:
        return self._seeds_or_none

    # Each run asks for both: a search that finds nothing is kept, too.

    @cached_property
    def _prompts_or_none(self) -> tuple[Socket, ...]:
        try:
            return self.prompts
        except BadInput:
            return ()

    @cached_property
    def _seeds_or_none(self) -> tuple[Socket, ...]:
        try:
            return self.seeds
        except BadInput:
            return ()

    def _negative(self) -> tuple[Socket, ...]:
        found: list[Socket] = []
        for name in self.samplers:
            inputs = self.graph[name]["inputs"]
            if is_link(inputs.get("guider")):
                inputs = self.graph[inputs["guider"][0]]["inputs"]
            if is_link(inputs.get("negative")):
                found += texts_of(self.graph, name, self._outputs, "negative")
        found = [one for one in dict.fromkeys(found) if one not in self.prompts_or_none()]
        if not found:
            raise BadInput(f"{self.where} has no negative prompt of its own; name its input as NODE.INPUT")
        if len({text_at(self.graph, one, "negative") for one in found}) > 1:
            raise self._ambiguous(NEGATIVE, found)
        return tuple(found)

    def _of_node(self, node: str, key: str) -> tuple[Socket, ...] | None:
        """NODE.INPUT, by the node's number, or its title or class where one node alone has it."""
        numbers = [node] if node in self.graph else []
        for of in (_title, lambda one: one["class_type"]):
            numbers = numbers or [name for name, one in self.graph.items() if of(one) == node]
        if not numbers:
            return None
        if len(numbers) > 1:
            raise BadInput(
                f"{self.where} has {len(numbers)} nodes {node!r} ({', '.join(numbers[:FEW])}); name one by "
                f"its number, as {numbers[0]}.{key}"
            )
        inputs = self.graph[numbers[0]]["inputs"]
        if key not in inputs:
            raise UnknownName(f"input of node {numbers[0]} in {self.where}:", key, inputs)
        return (Socket(numbers[0], key),)

    def _candidates(self, name: str) -> list[Socket]:
        keys = USUAL.get(name, (name,))
        found = [
            Socket(node, key) for node, one in self.graph.items() for key in keys if key in one["inputs"]
        ]
        held = [one for one in found if not is_link(value_at(self.graph, one))]
        return held or found

    def _by_input(self, name: str) -> tuple[Socket, ...] | None:
        found = self._candidates(name)
        # Of several, the samplers' own, and the size of the picture that they draw.
        for first in (
            lambda one: one.node in self.samplers,
            lambda one: self.graph[one.node]["class_type"].startswith("Empty"),
        ):
            if len(found) > 1:
                found = [one for one in found if first(one)] or found
        if len(found) > 1:
            raise self._ambiguous(name, found)
        return tuple(found) or None

    def _ambiguous(self, name: str, found: Sequence[Socket]) -> BadInput:
        listed = ", ".join(
            f"{one} {shorten(value_at(self.graph, one))} ({describe(self.graph[one.node])})"
            for one in found[:FEW]
        )
        more = f" and {len(found) - FEW} more" if len(found) > FEW else ""
        return BadInput(
            f"{self.where}: {name!r} is not clear; it could be {listed}{more}; write one of them in its place"
        )

    def _picture(self, kind: str, value: Any, folder: Path) -> Picture | None:
        """The picture file of this machine that is meant for a node which loads pictures, from `folder` or
        from where the command was started; else the name is one of the server's."""
        if not isinstance(value, str) or not kind.startswith("LoadImage"):
            return None
        path = next((one for one in (folder / value, Path(value)) if one.is_file()), None)
        if path is None:
            return None
        if path not in self._pictures:
            try:
                self._pictures[path] = Picture(path, hashlib.sha256(path.read_bytes()).hexdigest())
            except OSError as error:
                raise BadInput(f"cannot read the picture {path}: {error.strerror}") from error
        return self._pictures[path]


def _title(node: dict[str, Any]) -> Any:
    meta = node.get("_meta")
    return meta.get("title") if isinstance(meta, dict) else None


def _is_whole(value: Any) -> bool:
    try:
        return float(value).is_integer()
    except (TypeError, ValueError):
        return False


def _converted(value: Any, kind: type) -> Any:
    """`value` as a `kind`, of a link or an unknown kind as what it looks like. Raises ValueError, whose
    message says what was expected."""
    if kind is str:
        return str(value)
    if kind is bool:
        word = str(value).strip().lower()
        if word not in (*TRUE, *FALSE):
            raise ValueError("true or false")
        return word in TRUE
    if kind is int:
        try:
            number = int(str(value).strip())
        except ValueError:
            if not _is_whole(value):
                raise ValueError("a whole number") from None
            number = int(float(value))
        return number
    if kind is float or _is_number(value):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError("a number") from None
        if not math.isfinite(number):
            raise ValueError("a finite number")
        return int(number) if kind is not float and number.is_integer() else number
    return value


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
