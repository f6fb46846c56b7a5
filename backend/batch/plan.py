"""Which runs a set has: prompts x settings x seeds, each with a name of its own that does not change.

A run's name comes from what is drawn alone, so that adding prompts, settings or seeds adds runs, and the
order of a file does not matter. Settings in words, such as models, vary slowest: a server loads each once.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.types import SEED_RANGE
from ..renderers.comfyui.graph import Graph, Socket, value_at
from ..storage.prompt_files import check_prompt
from .inputs import PROMPT, SEED, Inputs, Picture
from .table import Table
from .wildcards import Wildcards

MOST_RUNS = 1_000_000
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Axis:
    """What `name` is set to in turn. `low`, `high`: of a range of which --random takes any number."""

    name: str
    sockets: tuple[Socket, ...]
    values: tuple[Any, ...]
    low: float = 0.0
    high: float = 0.0

    @property
    def in_words(self) -> bool:
        return any(isinstance(value, (str, Picture)) for value in self.values)


@dataclass(frozen=True)
class Run:
    """One run of the workflow.

    `prompt` is what the user asks for, None where the workflow does not show it. `template` is what it was
    made from, where that has wildcards. `variant`: which of its rewrites is drawn, None without a rewriter.
    `values` is all that is set but prompt and seed. `settings` and `labels` are for people: the columns and
    options that are inputs, and those that are not. Runs of one `group` differ in their seeds alone.
    """

    name: str
    group: str
    prompt: str | None
    seed: int | None
    values: dict[Socket, Any]
    settings: dict[str, Any]
    labels: dict[str, Any]
    sets_prompt: bool
    sets_seed: bool
    template: str | None = None
    variant: int | None = None


@dataclass
class Plan:
    """The runs of `inputs`' workflow for the rows of `table`.

    `axes` are set in all combinations; `take` of them at random for each prompt, all where that is None.
    `seeds` runs of each, from `seed` on, or from the row's or the workflow's own. `variants` rewrites of a
    prompt are drawn in turn, 0 without a rewriter.
    """

    inputs: Inputs
    table: Table | None = None
    axes: Sequence[Axis] = ()
    take: int | None = None
    seeds: int = 1
    seed: int | None = None
    wildcards: Wildcards | None = None
    variants: int = 0
    rewriter: str = ""
    columns: dict[str, tuple[Socket, ...]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    duplicates: int = 0

    def __post_init__(self) -> None:
        if self.table is not None:
            for column in self.table.columns:
                sockets = self.inputs.find(column, str(self.table.source))
                if sockets is None:
                    self.inputs.check_label(column, str(self.table.source))
                    self.labels.append(column)
                else:
                    self.columns[column] = sockets
            if not self.columns:
                raise BadInput(
                    f"{self.table.source} has no column that is an input of {self.inputs.where} "
                    f"(it has {', '.join(self.table.columns[:8])}); name one `prompt`, or NODE.INPUT"
                )
        self._check_conflicts()
        points = math.prod(max(1, len(axis.values)) for axis in self.axes)
        rows = len(self.table.rows) if self.table is not None else 1
        count = rows * self.seeds * min(points, self.take or points)
        if count > MOST_RUNS:
            raise BadInput(f"that would be {count:,} runs; the limit is {MOST_RUNS:,}")
        if self.take is None and (free := next((one for one in self.axes if not one.values), None)):
            raise BadInput(f"{free.name} has a range of fractions; give --random N, or list the values")
        self.graph = copy.deepcopy(self.inputs.graph)

    def _check_conflicts(self) -> None:
        places: dict[Socket, str] = {}
        named = [(name, sockets) for name, sockets in self.columns.items()]
        named += [(axis.name, axis.sockets) for axis in self.axes]
        seeds = set(self.inputs.seeds_or_none())
        for name, sockets in named:
            for socket in sockets:
                if socket in places:
                    raise BadInput(f"{places[socket]} and {name} both set {socket}; give one of them")
                places[socket] = name
            if any(axis.name == name for axis in self.axes) and seeds & set(sockets):
                raise BadInput(f"{name} sets the seed; give --seed and --seeds for that")

    @property
    def mark(self) -> str:
        """Names the workflow, whatever prompt and seed it was saved with."""
        graph = {
            name: {"class_type": node["class_type"], "inputs": dict(node["inputs"])}
            for name, node in self.graph.items()
        }
        for socket in (*self.inputs.prompts_or_none(), *self.inputs.seeds_or_none()):
            graph[socket.node]["inputs"][socket.input] = None
        return _hash(graph)

    @property
    def sets_seed(self) -> bool:
        return self.seeds > 1 or self.seed is not None

    def runs(self) -> Iterator[Run]:
        """All runs, each once, in the order in which they are drawn."""
        seen: set[str] = set()
        self.duplicates = 0
        words = [axis for axis in self.axes if axis.in_words]
        numbers = [axis for axis in self.axes if not axis.in_words]
        rows = self.table.rows if self.table is not None else ({},)
        mark = self.mark
        for slow in product(*(axis.values for axis in words)) if self.take is None else [()]:
            for number, row in enumerate(rows):
                place = self.table.place(number) if self.table is not None else self.inputs.where
                for point in self._points(row, dict(zip((axis.name for axis in words), slow)), numbers):
                    for run in self._of_row(row, place, point, mark):
                        if run.name in seen:
                            self.duplicates += 1
                            continue
                        seen.add(run.name)
                        yield run

    def _points(self, row: dict[str, Any], slow: dict[str, Any], numbers: list[Axis]) -> Iterator[dict]:
        if self.take is None:
            for values in product(*(axis.values for axis in numbers)):
                point = {**slow, **dict(zip((axis.name for axis in numbers), values))}
                yield {axis.name: point[axis.name] for axis in self.axes}
            return
        draw = random.Random(f"{self.seed or 0}\n{json.dumps(row, default=str)}")
        seen: list[dict] = []
        for _ in range(20 * self.take):
            point = {axis.name: _random_value(axis, draw) for axis in self.axes}
            if point not in seen:
                seen.append(point)
                yield point
            if len(seen) == self.take:
                return

    def _of_row(self, row: dict[str, Any], place: str, point: dict[str, Any], mark: str) -> Iterator[Run]:
        inputs, prompts = self.inputs, set(self.inputs.prompts_or_none())
        settings: dict[str, Any] = {}
        values: dict[Socket, Any] = {}
        template, base = None, self.seed
        given = [(name, self.columns[name], row[name]) for name in self.columns if name in row]
        folder = self.table.source.parent if self.table is not None else Path()
        for name, sockets, raw in given:
            value = inputs.value(sockets, raw, place, folder)
            if prompts and set(sockets) == prompts:
                template = check_prompt(str(value), f"{place}: the prompt")
            elif name == SEED:
                base = _check_seed(value, place)
            else:
                settings[name] = _shown(value)
                values.update(dict.fromkeys(sockets, value))
        for axis in self.axes:
            value = point[axis.name]
            if prompts and set(axis.sockets) == prompts:
                template = check_prompt(str(value))
            else:
                values.update(dict.fromkeys(axis.sockets, value))
            if len(axis.values) != 1 and axis.name != PROMPT:
                settings[axis.name] = _shown(value)
        labels = {name: row[name] for name in self.labels if name in row}
        sets_seed = self.sets_seed or base is not None
        seeds = inputs.seeds if sets_seed else inputs.seeds_or_none()
        base = inputs.own_seed if base is None else base
        fixed = [mark, sorted((str(one), _identity(value)) for one, value in values.items())]
        for i in range(self.seeds):
            seed = _check_seed(base + i, place) if seeds else None
            prompt = template
            if template is not None and self.wildcards is not None and self.wildcards.has(template):
                prompt = check_prompt(self.wildcards.expand(template, str(seed)), f"{place}: the prompt")
            own = inputs.own_prompt if template is None else None
            variant = i % self.variants if self.variants else None
            drawn = [seed] * len(seeds) if sets_seed else [value_at(self.graph, one) for one in seeds]
            told = prompt or [value_at(self.graph, one) for one in inputs.prompts_or_none()]
            group = _hash([*fixed, template or told, self.rewriter])
            yield Run(
                name=_hash([*fixed, told, drawn, [self.rewriter, self.variants, variant]]),
                group=group,
                prompt=prompt or own,
                seed=seed,
                values=values,
                settings=settings,
                labels=labels,
                sets_prompt=prompt is not None,
                sets_seed=sets_seed,
                template=template if template != prompt else None,
                variant=variant,
            )

    def job(self, run: Run, text: str | None, uploaded: dict[Picture, str]) -> Graph:
        """The graph to queue, with `text` as its prompt; `uploaded`: pictures' names on the server."""
        graph = {name: {**node, "inputs": dict(node["inputs"])} for name, node in self.graph.items()}
        for socket, value in run.values.items():
            graph[socket.node]["inputs"][socket.input] = (
                uploaded[value] if isinstance(value, Picture) else value
            )
        if text is not None and (run.sets_prompt or run.variant is not None):
            for socket in self.inputs.prompts:
                graph[socket.node]["inputs"][socket.input] = text
        if run.sets_seed:
            for socket in self.inputs.seeds:
                graph[socket.node]["inputs"][socket.input] = run.seed
        return graph


def parse_axis(option: str, word: str, inputs: Inputs, several: bool) -> Axis:
    """The axis of "NAME=VALUE[,VALUE…]", or of a range "NAME=2..8", for the option `option`.

    Values with commas stand in double quotes. Raises BadInput, UnknownName.
    """
    name, equals, text = word.partition("=")
    name, text = name.strip(), text.strip() if several else text
    if not (equals and name and (text or not several)):
        form = "NAME=VALUE,VALUE,…" if several else "NAME=VALUE"
        raise BadInput(f"{option} {word[:80]!r}: expected {form}, where NAME is such as cfg or 3.cfg")
    sockets = inputs.need(name, option)
    if several and (ends := _RANGE.fullmatch(text)):
        low, high = float(ends[1]), float(ends[2])
        if low >= high:
            raise BadInput(f"{option} {word}: expected a range from low to high")
        whole = low.is_integer() and high.is_integer() and "." not in ends[1] + ends[2]
        values = tuple(range(int(low), int(high) + 1)) if whole and high - low < 10_000 else ()
        values = tuple(inputs.value(sockets, value, option) for value in values)
        return Axis(name, sockets, values, low, high)
    raws = next(csv.reader([text], skipinitialspace=True), [""]) if several else [text]
    values = [inputs.value(sockets, raw.strip() if several else raw, f"{option} {name}") for raw in raws]
    return Axis(name, sockets, tuple(dict.fromkeys(values)))


def _random_value(axis: Axis, draw: random.Random) -> Any:
    if axis.values:
        return draw.choice(axis.values)
    digits = max(2, 3 - math.floor(math.log10(axis.high - axis.low)))
    return round(draw.uniform(axis.low, axis.high), digits)


def _check_seed(seed: Any, place: str) -> int:
    if not (isinstance(seed, int) and 0 <= seed < SEED_RANGE):
        raise BadInput(f"{place}: expected a seed of 0 to {SEED_RANGE - 1}, got {seed!r:.40}")
    return seed


def _identity(value: Any) -> Any:
    return ["picture", value.sha256] if isinstance(value, Picture) else value


def _shown(value: Any) -> Any:
    return value.path.name if isinstance(value, Picture) else value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
