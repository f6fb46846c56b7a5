"""Runs of nodes as groups of scored pictures, from the history that a ComfyUI server keeps while it runs.

A graph leaves what is needed where the `images` of PARM Best-of-N or of a Reflection Loop, or what a Reward
Scorer is given or ranks, are also shown by a Save or Preview node: the reports have the scores, the Save or
Preview node the pictures.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, first_line
from ..judging import ranking
from ..keys import check_address
from ..renderers.workflow import REWRITERS, Graph, Socket, is_link, is_sampler, text_at, texts_of, upstream
from ..rewards.pictures import from_pil
from ..types import RewardSpec
from .pairing import Group, Picture, spec_of, spread_of

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 60.0  # that one answer may take
SCORER_RANKED = 1  # an output of the node
IMAGES = {"reprise_parm": 2, "reprise_reflection": 2}  # what a node reports -> which output its pictures are
Outputs = Mapping[str, Mapping[str, Any]]  # what each node of a run showed


def read_history(url: str, note: Callable[[str], None]) -> Iterator[Group]:
    """The groups of every run that the server at `url` remembers. Raises BadInput where none answers."""
    import httpx

    url = check_address(url, "http://127.0.0.1:8188")
    try:
        answer = httpx.get(f"{url}/history", timeout=SECONDS)
        found = answer.raise_for_status().json()
        runs = [(name, run["prompt"][2], run["outputs"]) for name, run in found.items()]
    except (httpx.HTTPError, OSError) as error:
        raise BadInput(f"the ComfyUI server {url} does not show its history: {first_line(error)}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{url} is no ComfyUI server: its /history is something else") from error
    told = 0
    for name, graph, outputs in runs:
        for node, shown in outputs.items():
            for read in (_parm, _reflected, _scored):
                if (group := read(url, graph, outputs, node)) is not None:
                    told += 1
                    yield group
            for key, output in IMAGES.items():
                if key in shown and node in graph and not _pictures(graph, outputs, [node, output]):
                    note(f"{url}, run {name}: the pictures of node {node} were not kept; connect its "
                         "`images` to a Preview Image node")  # fmt: skip
    if not told:
        note(f"{url} remembers {len(runs)} runs, none with scored pictures that were kept")


def _parm(url: str, graph: Graph, outputs: Outputs, node: str) -> Group | None:
    """What PARM Best-of-N reported; with a list of prompts it ran once for each."""
    reports = outputs[node].get("reprise_parm")
    kept = iter(_pictures(graph, outputs, [node, IMAGES["reprise_parm"]]))
    if not reports or node not in graph:
        return None
    pictures = []
    for number, report in enumerate(reports):
        spec = _spec(report)
        finished = {c["index"]: c for c in report["candidates"] if c["score"] is not None}
        words, reason = _drawn_as(graph, outputs, [node], number)
        for index in ranking(spec, {i: c["score"] for i, c in finished.items()}):
            file = next(kept, None)
            if file is not None and words:
                one = finished[index]
                pictures.append(Picture(partial(_view, url, file), words, one["score"], one["seed"],
                                        {spec.name: one["score"]}, reason))  # fmt: skip
    prompt = text_at(graph, Socket(node, "prompt"))
    return _group(url, prompt, reports[0], pictures)


def _reflected(url: str, graph: Graph, outputs: Outputs, node: str) -> Group | None:
    """What a Reflection Loop reported; its rounds differ in words, so that they pair by the user's. The nodes
    that it made report parts of it, and are not in the graph."""
    reports = outputs[node].get("reprise_reflection")
    kept = iter(_pictures(graph, outputs, [node, IMAGES["reprise_reflection"]]))
    if not reports or node not in graph:
        return None
    pictures = []
    for report in reports:
        name = _spec(report).name
        for one, file in zip(report["rounds"], kept):
            # A later rewrite had a critique to go by, which pairs of rewrites do not know.
            pictures.append(Picture(partial(_view, url, file), one["prompt"], one["score"], one["seed"],
                                    {name: one["score"]}))  # fmt: skip
    return _group(url, reports[0]["prompt"], reports[0], pictures)


def _scored(url: str, graph: Graph, outputs: Outputs, node: str) -> Group | None:
    """What a Reward Scorer reported. Which seed drew which picture of a batch it does not know."""
    reports = outputs[node].get("reprise_scores")
    link = graph[node]["inputs"].get("images") if node in graph else None
    if not reports or link is None or not is_link(link):
        return None
    samplers = [name for name, one in upstream(graph, link).items() if is_sampler(one)]
    given = _pictures(graph, outputs, link)
    ranked = iter(given or _pictures(graph, outputs, [node, SCORER_RANKED]))
    pictures = []
    for number, report in enumerate(reports):
        spec, scores = _spec(report), report["scores"]
        words, reason = _drawn_as(graph, outputs, samplers, number)
        for index in range(len(scores)) if given else report["ranking"]:
            file = next(ranked, None)
            if file is not None and words:
                pictures.append(Picture(partial(_view, url, file), words, scores[index], None,
                                        {spec.name: scores[index]}, reason))  # fmt: skip
    return _group(url, reports[0]["prompt"], reports[0], pictures)


def _group(url: str, prompt: str, report: Mapping[str, Any], pictures: list[Picture]) -> Group | None:
    spec = _spec(report)
    if not pictures or not prompt.strip():
        return None
    return Group(prompt.strip(), pictures, spec.name, spec.higher_is_better, spread_of(spec), "comfyui", url,
                 "comfyui")  # fmt: skip


def _spec(report: Mapping[str, Any]) -> RewardSpec:
    """As the report says it; a judge with an open end has no range, and margins are as its scores are."""
    low, high = report["low"], report["high"]
    known = spec_of(report["judge"])
    if known is not None:
        return known
    low, high = (low, high) if None not in (low, high) and low != high else (0.0, 1.0)
    return RewardSpec(report["judge"], low, high, report["higher_is_better"])


def _pictures(graph: Graph, outputs: Outputs, link: list[Any]) -> list[dict[str, str]]:
    """The files of the first node that saved or showed what `link` leads to."""
    for name, shown in outputs.items():
        given = graph[name]["inputs"].get("images") if name in graph else None
        if given == link and shown.get("images"):
            return list(shown["images"])
    return []


def _drawn_as(graph: Graph, outputs: Outputs, samplers: list[str], number: int) -> tuple[str, str | None]:
    """(the text that the samplers drew, its rewriter's reason); "" where it is not one text."""
    found: dict[str, str | None] = {}
    for socket in (socket for name in samplers for socket in texts_of(graph, name)):
        value = graph[socket.node]["inputs"][socket.input]
        if not is_link(value):
            if value.strip():
                found.setdefault(value.strip(), None)
        elif graph[value[0]]["class_type"] in REWRITERS:
            (shown, *_) = outputs.get(value[0], {}).get("reprise_rewrite") or [{}]
            prompts, reasons = shown.get("prompts", []), shown.get("reasons", [])
            if number < len(prompts):
                found[prompts[number]] = reasons[number] if number < len(reasons) else None
    return next(iter(found.items())) if len(found) == 1 else ("", None)


def _view(url: str, file: Mapping[str, str]) -> Tensor | None:
    """A picture that the server still has."""
    import httpx
    from PIL import Image

    wanted = {key: str(file.get(key, "")) for key in ("filename", "subfolder", "type")}
    try:
        answer = httpx.get(f"{url}/view", params=wanted, timeout=SECONDS)
        with Image.open(io.BytesIO(answer.raise_for_status().content)) as opened:
            return from_pil(opened)
    except (httpx.HTTPError, OSError, SyntaxError, ValueError):
        return None
