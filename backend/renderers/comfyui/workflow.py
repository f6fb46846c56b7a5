"""A saved ComfyUI workflow (API format) as a function of prompt and seed.

The picture is what a Save or Preview node is given; only the nodes that it is made of stay. `texts.py` and
`sockets.py` find where prompt, seed and steps go.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import BadInput
from .classes import output_names
from .files import ObjectInfo, read_workflow
from .graph import Graph, Socket, is_sampler, title, upstream
from .sockets import NamedSockets, SocketSearch

SINK = "reprise"  # the id of the node that hands the picture over


@dataclass(frozen=True)
class Workflow:
    """A graph that draws one picture, and where its prompt and seed go.

    `steps` are the sampling steps of all samplers, `rows` their denoiser rows as the graph says them: a step
    with guidance is 2. A search or a reflection loop inside the graph counts as one picture.
    """

    graph: Graph
    picture: tuple[str, int]
    prompts: tuple[Socket, ...]
    seeds: tuple[Socket, ...]
    samplers: tuple[str, ...]
    steps: int
    rows: int
    titles: dict[str, str] = field(default_factory=dict)

    def job(self, prompt: str, seed: int, sink: str) -> Graph:
        """The graph to queue; `sink` is the class of the node that hands the picture over.

        Everything but prompt and seed is the same in every job, so that a server's cache keeps it.
        """
        graph = {name: {**node, "inputs": dict(node["inputs"])} for name, node in self.graph.items()}
        for value, sockets in ((prompt, self.prompts), (seed, self.seeds)):
            for socket in sockets:
                graph[socket.node]["inputs"][socket.input] = value
        graph[SINK] = {"class_type": sink, "inputs": {"images": list(self.picture)}}
        return graph

    @property
    def content(self) -> list[Any]:
        """All that decides the picture but prompt and seed, for a fingerprint."""
        return [self.graph, list(self.picture), [str(s) for s in self.prompts], [str(s) for s in self.seeds]]

    def title(self, node: str) -> str:
        """A node as its user knows it: 'node 1 "Load Checkpoint" (CheckpointLoaderSimple)'."""
        return self.titles.get(node, f"node {node}")


def load_workflow(
    path: Path,
    names: NamedSockets | None = None,
    steps: int | None = None,
    object_info: ObjectInfo | None = None,
) -> Workflow:
    """The workflow in a file of any kind that ComfyUI saves; see `read_workflow` and `prepare` for what
    is refused. `object_info` gives a server's `/object_info`, which an editor's workflow needs."""
    graph = read_workflow(path, object_info)
    return prepare(graph, names or NamedSockets(), steps, str(path), object_info)


def prepare(
    graph: Graph,
    names: NamedSockets = NamedSockets(),
    steps: int | None = None,
    where: str = "flow",
    object_info: ObjectInfo | None = None,
) -> Workflow:
    """Find what is not named, cut the graph down to the picture, and set `steps` where they are given.

    `where` is the file's name for messages; `object_info` is asked for the names of outputs that a graph does
    not have. Raises BadInput where something is not found or not clear,
    UnknownName for a node or input that is not there, Unsupported where steps cannot be set.
    """
    titles = {name: title(name, node) for name, node in graph.items()}
    search = SocketSearch(where, graph, names, output_names(object_info))
    picture = search.output()
    try:
        search.graph = graph = copy.deepcopy(upstream(graph, picture))
    except RecursionError:
        raise BadInput(f"{where}: a node's input is nested too deeply to be one") from None
    for node in graph.values():
        # One picture for a job. Samplers draw the noise of a batch in one piece, so the rest is only waste.
        if node["class_type"].startswith("Empty") and isinstance(node["inputs"].get("batch_size"), int):
            node["inputs"]["batch_size"] = 1
    samplers = tuple(name for name, node in graph.items() if is_sampler(node))
    prompts, seeds = search.prompts(samplers), search.seeds(samplers)
    counted = search.set_steps(samplers, steps)
    for value, sockets in (("", prompts), (0, seeds)):
        for socket in sockets:
            graph[socket.node]["inputs"][socket.input] = value
    graph = upstream(graph, picture)  # without what only made the prompt or the seed
    for node in graph.values():
        node.pop("_meta", None)
    return Workflow(
        graph,
        picture,
        prompts=tuple(s for s in prompts if s.node in graph),
        seeds=tuple(s for s in seeds if s.node in graph),
        samplers=samplers,
        titles=titles,
        steps=max(1, sum(n for n, _ in counted)),
        rows=max(1, sum(n * rows for n, rows in counted)),
    )
