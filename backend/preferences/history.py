"""Runs of nodes as groups of scored pictures, from the history that a ComfyUI server keeps while it runs.

A graph leaves what is needed where the `images` of PARM Best-of-N or of a Reflection Loop, or what a Reward
Scorer is given or ranks, are also shown by a Save or Preview node: the reports have the scores, the Save or
Preview node the pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from ..core.config import validation_message
from ..core.errors import BadInput, first_line
from ..core.scoring import rank
from ..core.types import RewardSpec
from ..net.credentials import check_address
from ..net.http import HttpFault, fetch, quote
from ..renderers.comfyui.workflow import (
    REWRITERS,
    Graph,
    Socket,
    is_link,
    is_sampler,
    text_at,
    texts_of,
    upstream,
)
from ..storage.images import from_pil
from .pairing import PictureGroup, ScoredPicture, reward_spec, score_range
from .store import canonical_reward_name

if TYPE_CHECKING:
    from torch import Tensor

LIMITS = {"timeout": 60.0, "max_bytes": 256 * 2**20}  # of one answer
SCORER_RANKED = 1  # an output of the node
IMAGES = {"reprise_parm": 2, "reprise_reflection": 2}  # what a node reports -> which output its pictures are
FILE = ("filename", "subfolder", "type")  # what `/view` finds a picture by
Outputs = Mapping[str, Mapping[str, Any]]  # what each node of a run showed
File = dict[str, str]
View = Callable[[File], "Tensor | None"]


class _ReportModel(BaseModel):
    # Nodes of newer versions may tell more; what is there must be right.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Report(_ReportModel):
    """What a node told of one run of it."""

    judge: str
    higher_is_better: bool
    low: FiniteFloat | None
    high: FiniteFloat | None

    @property
    def spec(self) -> RewardSpec:
        """A judge with an open end has no range, and margins are as its scores are."""
        known = reward_spec(self.judge)
        if known is not None:
            return known
        low, high = self.low, self.high
        if low is None or high is None or low == high:
            low, high = 0.0, 1.0
        return RewardSpec(canonical_reward_name(self.judge), low, high, self.higher_is_better)


class _ParmCandidate(_ReportModel):
    index: int
    seed: int
    score: FiniteFloat | None


class _ParmReport(_Report):
    prompt: str = ""
    candidates: list[_ParmCandidate]


class _ReflectionRound(_ReportModel):
    prompt: str
    score: FiniteFloat
    seed: int


class _ReflectionReport(_Report):
    prompt: str
    rounds: list[_ReflectionRound]


class _ScorerReport(_Report):
    prompt: str
    scores: list[FiniteFloat]
    ranking: list[int]


R = TypeVar("R", bound=_Report)
ReportedPicture = tuple[str, _Report, ScoredPicture]  # the user's prompt, what judged, what was drawn


def read_history(url: str, note: Callable[[str], None]) -> Iterator[PictureGroup]:
    """The groups of every run that the server at `url` remembers; one that is not as ComfyUI keeps runs is
    left out, and noted. Raises BadInput where no server answers."""
    url = check_address(url, "http://127.0.0.1:8188")
    try:
        answer = fetch(url, "history", **LIMITS)
        if answer.status != 200:
            raise BadInput(
                f"the ComfyUI server {url} does not show its history ({answer.status}: "
                f"{quote(answer.message)})"
            )
        runs = json.loads(answer.body)
    except HttpFault as fault:
        raise BadInput(
            f"{fault.describe(f'the ComfyUI server {url}')}; start it, or correct the address"
        ) from fault
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{url} is no ComfyUI server: its /history is no JSON") from error
    if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()):
        raise BadInput(f"{url} is no ComfyUI server: its /history is something else")
    told = 0
    for name, run in runs.items():
        try:
            graph, outputs = run["prompt"][2], run["outputs"]
            groups = [group for node in outputs for group in _node_groups(url, graph, outputs, node)]
            lost = _nodes_without_pictures(graph, outputs)
        except ValidationError as error:
            note(f"{url}: run {name} was left out, a report of it is damaged: {validation_message(error)}")
            continue
        except (LookupError, TypeError, ValueError, AttributeError, BadInput) as error:
            note(f"{url}: run {name} was left out, it is not as ComfyUI keeps runs: {_error_text(error)}")
            continue
        for node in lost:
            note(
                f"{url}, run {name}: the pictures of node {node} were not kept; connect its `images` to a "
                "Preview Image node"
            )
        told += len(groups)
        yield from groups
    if not told:
        note(f"{url} remembers {len(runs)} runs, none with scored pictures that were kept")


def _error_text(error: Exception) -> str:
    said = first_line(error)
    return said if isinstance(error, BadInput) else f"{type(error).__name__}: {said}"


def _nodes_without_pictures(graph: Graph, outputs: Outputs) -> list[str]:
    """The nodes whose pictures nothing saved or showed."""
    return [
        node
        for node, shown in outputs.items()
        for key, output in IMAGES.items()
        if key in shown and node in graph and not _image_files(graph, outputs, [node, output])
    ]


def _node_groups(url: str, graph: Graph, outputs: Outputs, node: str) -> list[PictureGroup]:
    """The groups of what a node reported: with a list of prompts, or of judges, it ran once for each, and has
    one of each."""
    found: dict[tuple[str, RewardSpec], list[ScoredPicture]] = {}
    for read in (_parm_pictures, _reflection_pictures, _scorer_pictures):
        for prompt, report, picture in read(partial(_view, url), graph, outputs, node):
            found.setdefault((prompt.strip(), report.spec), []).append(picture)
    return [
        PictureGroup(
            prompt, pictures, spec.name, spec.higher_is_better, score_range(spec), "comfyui", url, "comfyui"
        )
        for (prompt, spec), pictures in found.items()
        if prompt
    ]


def _parm_pictures(view: View, graph: Graph, outputs: Outputs, node: str) -> Iterator[ReportedPicture]:
    """What PARM Best-of-N reported."""
    reports = _node_reports(_ParmReport, outputs[node].get("reprise_parm"))
    if not reports or node not in graph:
        return
    kept = iter(_image_files(graph, outputs, [node, IMAGES["reprise_parm"]]))
    typed = text_at(graph, Socket(node, "prompt"))
    for number, report in enumerate(reports):
        # Nodes of earlier versions do not say it; which of a list it was then nobody knows.
        one_of_many = len(reports) > 1 and is_link(graph[node]["inputs"]["prompt"])
        prompt = report.prompt or ("" if one_of_many else typed)
        finished = {c.index: c for c in report.candidates if c.score is not None}
        words, reason = _drawn_text(graph, outputs, [node], number, typed, prompt)
        for index in rank(report.spec, {i: c.score or 0.0 for i, c in finished.items()}):
            file = next(kept, None)
            if file is not None and words:
                one = finished[index]
                yield prompt, report, _scored_picture(view, file, words, report, one.score, one.seed, reason)


def _reflection_pictures(view: View, graph: Graph, outputs: Outputs, node: str) -> Iterator[ReportedPicture]:
    """What a Reflection Loop reported; its rounds differ in words, so that they pair by the user's. The nodes
    that it made report parts of it, and are not in the graph."""
    reports = _node_reports(_ReflectionReport, outputs[node].get("reprise_reflection"))
    if not reports or node not in graph:
        return
    kept = iter(_image_files(graph, outputs, [node, IMAGES["reprise_reflection"]]))
    for report in reports:
        for one, file in zip(report.rounds, kept):
            # A later rewrite had a critique to go by, which pairs of rewrites do not know.
            yield (
                report.prompt,
                report,
                _scored_picture(view, file, one.prompt, report, one.score, one.seed, None),
            )


def _scorer_pictures(view: View, graph: Graph, outputs: Outputs, node: str) -> Iterator[ReportedPicture]:
    """What a Reward Scorer reported. Which seed drew which picture of a batch it does not know."""
    reports = _node_reports(_ScorerReport, outputs[node].get("reprise_scores"))
    link = graph[node]["inputs"].get("images") if node in graph else None
    if not reports or link is None or not is_link(link):
        return
    samplers = [name for name, one in upstream(graph, link).items() if is_sampler(one)]
    typed = text_at(graph, Socket(node, "prompt"))
    given = _image_files(graph, outputs, link)
    ranked = iter(given or _image_files(graph, outputs, [node, SCORER_RANKED]))
    for number, report in enumerate(reports):
        words, reason = _drawn_text(graph, outputs, samplers, number, typed, report.prompt)
        for index in range(len(report.scores)) if given else report.ranking:
            file = next(ranked, None)
            if file is not None and words:
                yield (
                    report.prompt,
                    report,
                    _scored_picture(view, file, words, report, report.scores[index], None, reason),
                )


def _node_reports(kind: type[R], told: Any) -> list[R]:
    """The reports of a node, checked; none where it told nothing."""
    return [kind.model_validate(one) for one in told or []]


def _scored_picture(
    view: View,
    file: File,
    words: str,
    report: _Report,
    score: float | None,
    seed: int | None,
    reason: str | None,
) -> ScoredPicture:
    assert score is not None
    scores = {report.spec.name: score}
    return ScoredPicture(partial(view, file), words, score, seed, scores, reason, content=json.dumps(file))


def _image_files(graph: Graph, outputs: Outputs, link: list[Any]) -> list[File]:
    """The files of the first node that saved or showed what `link` leads to."""
    for name, shown in outputs.items():
        given = graph[name]["inputs"].get("images") if name in graph else None
        if given == link and shown.get("images"):
            return [{key: str(file.get(key, "")) for key in FILE} for file in shown["images"]]
    return []


def _drawn_text(
    graph: Graph, outputs: Outputs, samplers: list[str], number: int, typed: str, prompt: str
) -> tuple[str, str | None]:
    """(the text that the samplers drew, its rewriter's reason) in one run of a node, the `number`th; "" where
    it is not one text. What the judge was given, too, is that run's `prompt`, whatever list `typed` is of."""
    found: dict[str, str | None] = {}
    for socket in (socket for name in samplers for socket in texts_of(graph, name)):
        value = graph[socket.node]["inputs"][socket.input]
        if not is_link(value):
            if value.strip():
                found.setdefault((prompt if value == typed else value).strip(), None)
        elif graph[value[0]]["class_type"] in REWRITERS:
            told = outputs.get(value[0], {}).get("reprise_rewrite") or []
            rewrites = [one for shown in told for one in zip_longest(shown["prompts"], shown["reasons"])]
            found |= dict(rewrites[number : number + 1])
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _view(url: str, file: File) -> Tensor | None:
    """A picture that the server still has."""
    from PIL import Image

    try:
        answer = fetch(url, "view", params=file, **LIMITS)
        if answer.status != 200:
            return None
        with Image.open(io.BytesIO(answer.body)) as opened:
            return from_pil(opened)
    except (HttpFault, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
