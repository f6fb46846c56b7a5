"""Groups of scored pictures from the history that a ComfyUI server keeps until it stops.

A node's report has the scores, a Save or Preview node the pictures. So one of these must show the `images`
of PARM Best-of-N or of a Reflection Loop, or the images that a Reward Scorer reads or returns.
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
from ..core.parsing import parse_json
from ..core.scoring import rank
from ..core.types import RewardSpec
from ..factory import reward_spec
from ..net.credentials import COMFYUI, check_address
from ..net.http import HttpFault, fetch, quote
from ..renderers.comfyui.classes import object_info, output_names
from ..renderers.comfyui.graph import Graph, Socket, is_link, is_sampler, upstream
from ..renderers.comfyui.texts import REWRITER_NODES, OutputNames, text_at, texts_of
from ..storage.images import decode_picture
from .pairing import PictureGroup, ScoredPicture, score_range
from .store import canonical_reward_name

if TYPE_CHECKING:
    from torch import Tensor

LIMITS = {"timeout": 60.0, "max_bytes": 256 * 2**20}  # of one answer
SCORER_RANKED = 1  # an output of the node
IMAGES = {"reprise_parm": 2, "reprise_reflection": 2}  # key of a node's report -> its output of pictures
FILE = ("filename", "subfolder", "type")  # the parameters of `/view`
Outputs = Mapping[str, Mapping[str, Any]]  # node id -> its UI output in a run
File = dict[str, str]
View = Callable[[File], "Tensor | None"]


class _ReportModel(BaseModel):
    # Nodes of newer versions may report more fields: they are ignored. The known ones must be valid.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Report(_ReportModel):
    """What a node reports of one run."""

    judge: str
    higher_is_better: bool
    low: FiniteFloat | None
    high: FiniteFloat | None

    @property
    def spec(self) -> RewardSpec:
        """The judge's range and direction. One without a finite range gets 0 to 1."""
        known = reward_spec(canonical_reward_name(self.judge))
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
ReportedPicture = tuple[str, _Report, ScoredPicture]  # user's prompt, report, picture


def read_history(url: str, note: Callable[[str], None]) -> Iterator[PictureGroup]:
    """The groups of every run in the history of the server at `url`.

    A run that cannot be read is left out, and `note` is called with the reason. Raises BadInput if no server
    answers, or the answer is not ComfyUI's.
    """
    url = check_address(url, COMFYUI.example)
    try:
        answer = fetch(url, "history", **LIMITS)
        if answer.status != 200:
            raise BadInput(
                f"the ComfyUI server {url} does not show its history ({answer.status}: "
                f"{quote(answer.message)})"
            )
        runs = parse_json(answer.body)
    except HttpFault as fault:
        raise BadInput(
            f"{fault.describe(f'the ComfyUI server {url}')}; start it, or correct the address"
        ) from fault
    except ValueError as error:
        raise BadInput(f"{url} is no ComfyUI server: its /history is not JSON") from error
    if not isinstance(runs, dict) or not all(isinstance(run, dict) for run in runs.values()):
        raise BadInput(f"{url} is no ComfyUI server: its /history is no object of runs")
    total, names = 0, output_names(object_info([url]))
    for name, run in runs.items():
        try:
            graph, outputs = run["prompt"][2], run["outputs"]
            groups = [group for node in outputs for group in _node_groups(url, graph, outputs, node, names)]
            lost = _nodes_without_pictures(graph, outputs)
        except ValidationError as error:
            note(f"{url}: run {name} is left out; a node's report is damaged: {validation_message(error)}")
            continue
        except (LookupError, TypeError, ValueError, AttributeError, BadInput) as error:
            note(f"{url}: run {name} is left out; it is not in ComfyUI's format: {_error_text(error)}")
            continue
        for node in lost:
            note(
                f"{url}, run {name}: the pictures of node {node} were not saved; connect its `images` to a "
                "Preview Image node"
            )
        total += len(groups)
        yield from groups
    if not total:
        note(f"{url} has {len(runs)} runs in its history, none with saved and scored pictures")


def _error_text(error: Exception) -> str:
    text = first_line(error)
    return text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"


def _nodes_without_pictures(graph: Graph, outputs: Outputs) -> list[str]:
    """The reporting nodes whose pictures no other node saved or showed."""
    return [
        node
        for node, shown in outputs.items()
        for key, output in IMAGES.items()
        if key in shown and node in graph and not _image_files(graph, outputs, [node, output])
    ]


def _node_groups(
    url: str, graph: Graph, outputs: Outputs, node: str, names: OutputNames
) -> list[PictureGroup]:
    """The groups of a node. With a list of prompts or judges it ran once for each: a group each."""
    found: dict[tuple[str, RewardSpec], list[ScoredPicture]] = {}
    for read in (_parm_pictures, _reflection_pictures, _scorer_pictures):
        for prompt, report, picture in read(partial(_view, url), graph, outputs, node, names):
            found.setdefault((prompt.strip(), report.spec), []).append(picture)
    return [
        PictureGroup(
            prompt, pictures, spec.name, spec.higher_is_better, score_range(spec), "comfyui", url, "comfyui"
        )
        for (prompt, spec), pictures in found.items()
        if prompt
    ]


def _parm_pictures(
    view: View, graph: Graph, outputs: Outputs, node: str, names: OutputNames
) -> Iterator[ReportedPicture]:
    """The finished candidates of PARM Best-of-N."""
    reports = _node_reports(_ParmReport, outputs[node].get("reprise_parm"))
    if not reports or node not in graph:
        return
    kept = iter(_image_files(graph, outputs, [node, IMAGES["reprise_parm"]]))
    typed = text_at(graph, Socket(node, "prompt"))
    for number, report in enumerate(reports):
        # Earlier versions did not report the prompt; with a list of prompts it is then unknown.
        one_of_many = len(reports) > 1 and is_link(graph[node]["inputs"]["prompt"])
        prompt = report.prompt or ("" if one_of_many else typed)
        finished = {c.index: c for c in report.candidates if c.score is not None}
        words, reason = _drawn_text(graph, outputs, [node], number, typed, prompt, names)
        for index in rank(report.spec, {i: c.score or 0.0 for i, c in finished.items()}):
            file = next(kept, None)
            if file is not None and words:
                one = finished[index]
                yield prompt, report, _scored_picture(view, file, words, report, one.score, one.seed, reason)


def _reflection_pictures(
    view: View, graph: Graph, outputs: Outputs, node: str, names: OutputNames
) -> Iterator[ReportedPicture]:
    """The rounds of a Reflection Loop. Each drew another prompt, so they pair by the user's prompt.

    The nodes of its expansion report parts of the same rounds; they are not in the graph and are skipped.
    """
    reports = _node_reports(_ReflectionReport, outputs[node].get("reprise_reflection"))
    if not reports or node not in graph:
        return
    kept = iter(_image_files(graph, outputs, [node, IMAGES["reprise_reflection"]]))
    for report in reports:
        for one, file in zip(report.rounds, kept):
            # No reason: later rewrites also follow a critique, which a pair of rewrites does not record.
            yield (
                report.prompt,
                report,
                _scored_picture(view, file, one.prompt, report, one.score, one.seed, None),
            )


def _scorer_pictures(
    view: View, graph: Graph, outputs: Outputs, node: str, names: OutputNames
) -> Iterator[ReportedPicture]:
    """The pictures of a Reward Scorer. Which seed drew which picture of a batch is not known."""
    reports = _node_reports(_ScorerReport, outputs[node].get("reprise_scores"))
    link = graph[node]["inputs"].get("images") if node in graph else None
    if not reports or link is None or not is_link(link):
        return
    samplers = [name for name, one in upstream(graph, link).items() if is_sampler(one)]
    typed = text_at(graph, Socket(node, "prompt"))
    given = _image_files(graph, outputs, link)
    ranked = iter(given or _image_files(graph, outputs, [node, SCORER_RANKED]))
    for number, report in enumerate(reports):
        words, reason = _drawn_text(graph, outputs, samplers, number, typed, report.prompt, names)
        for index in range(len(report.scores)) if given else report.ranking:
            file = next(ranked, None)
            if file is not None and words:
                yield (
                    report.prompt,
                    report,
                    _scored_picture(view, file, words, report, report.scores[index], None, reason),
                )


def _node_reports(kind: type[R], values: Any) -> list[R]:
    """A node's reports, validated; none for None."""
    return [kind.model_validate(value) for value in values or []]


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
    """The files of the first node that saved or showed the pictures behind `link`."""
    for name, shown in outputs.items():
        images = graph[name]["inputs"].get("images") if name in graph else None
        if images == link and shown.get("images"):
            return [{key: str(file.get(key, "")) for key in FILE} for file in shown["images"]]
    return []


def _drawn_text(
    graph: Graph,
    outputs: Outputs,
    samplers: list[str],
    number: int,
    typed: str,
    prompt: str,
    names: OutputNames,
) -> tuple[str, str | None]:
    """(text that the samplers drew, its rewriter's reason) in run `number` of a node; "" if several texts.

    A text equal to the judge's own input `typed` stands for this run's `prompt`: `typed` may be of a list.
    """
    found: dict[str, str | None] = {}
    for socket in (socket for name in samplers for socket in texts_of(graph, name, names)):
        value = graph[socket.node]["inputs"][socket.input]
        if not is_link(value):
            if value.strip():
                found.setdefault((prompt if value == typed else value).strip(), None)
        elif graph[value[0]]["class_type"] in REWRITER_NODES:
            reports = outputs.get(value[0], {}).get("reprise_rewrite") or []
            rewrites = [pair for one in reports for pair in zip_longest(one["prompts"], one["reasons"])]
            found |= dict(rewrites[number : number + 1])
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _view(url: str, file: File) -> Tensor | None:
    """A picture (H, W, 3) in 0..1 from the server; None if it has it no more."""
    try:
        answer = fetch(url, "view", params=file, **LIMITS)
        return decode_picture(io.BytesIO(answer.body)) if answer.status == 200 else None
    except (HttpFault, OSError, ValueError):
        return None
