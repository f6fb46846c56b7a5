"""A saved ComfyUI workflow (API format) as a function of prompt and seed: pure analysis of the graph.

The picture is what a Save or Preview node is given; only what it is made of stays. The prompt is found from
the samplers: along their positive conditioning to the text encode node, and from there to where the text
stands. Nodes are told apart by their inputs' names, which custom nodes share with ComfyUI's own, not by a
list of classes. Where more than one thing could be meant, nothing is guessed: the candidates are listed, and
the user names one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import FEW, BadInput, UnknownName, Unsupported

Node = dict[str, Any]  # {"class_type", "inputs", "_meta": {"title"}}; a link is [node's id, output's index]
Graph = dict[str, Node]

SINK = "reprise"  # the id of the node that hands the picture over
# The texts of encode nodes, of nodes that hold a text, and of samplers that encode by themselves.
TEXTS = (
    "text",
    "prompt",
    "first_prompt",
    "user_prompt",
    "clip_l",
    "clip_g",
    "text_l",
    "text_g",
    "t5xxl",
    "bert",
    "mt5xl",
    "llama",
    "caption",
    "positive",
    "value",
    "string",
)
SEEDS = ("seed", "noise_seed")
# Links that lead from a node of unknown class to anything but conditioning.
NO_CONDITIONING = (
    "model",
    "clip",
    "vae",
    "image",
    "latent",
    "samples",
    "control_net",
    "mask",
    "style_model",
    "negative",
    "uncond",
)
# They make the text that is drawn from another one. A job brings that text, so they are passed over.
REWRITERS = ("RepriseRewriter", "RepriseRefiner")
AGAIN = "export it again in API format"


@dataclass(frozen=True, order=True)
class Socket:
    """One input of one node, written "6.text"."""

    node: str
    input: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


@dataclass(frozen=True)
class NamedSockets:
    """What the user named instead of having it found: sockets as "6.text" ("6" where the node has one such
    input), several with "+"; `output` is a Save or Preview node."""

    prompt: str | None = None
    seed: str | None = None
    steps: str | None = None
    output: str | None = None


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


def read_workflow(path: Path) -> Graph:
    """The graph in a file. Raises BadInput where it is none in API format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"cannot read the workflow {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON; give a workflow that ComfyUI saved in API format") from error
    if isinstance(found, dict) and isinstance(found.get("nodes"), list):
        raise BadInput(
            f"{path} is a workflow for the editor, which no server can run; open it in ComfyUI, choose "
            "File > Export (API), and give that file"
        )
    if isinstance(found, dict) and isinstance(found.get("prompt"), dict):  # as it is posted to a server
        found = found["prompt"]
    if not isinstance(found, dict) or not found:
        raise BadInput(f"{path} holds no nodes; give a workflow that ComfyUI saved in API format")
    for name, node in found.items():
        if not (
            isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        ):
            raise BadInput(f"{path}: node {name!r} has no class_type and inputs; {AGAIN}")
        for key, value in node["inputs"].items():
            if is_link(value) and value[0] not in found:
                lost = f"{path}: {name}.{key} comes from node {value[0]!r}, which is not there"
                raise BadInput(f"{lost}; {AGAIN}")
    return found


def load_workflow(path: Path, names: NamedSockets | None = None, steps: int | None = None) -> Workflow:
    """The workflow in a file; see `read_workflow` and `prepare` for what is refused."""
    return prepare(read_workflow(path), names or NamedSockets(), steps, str(path))


def is_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def prepare(
    graph: Graph, names: NamedSockets = NamedSockets(), steps: int | None = None, where: str = "flow"
) -> Workflow:
    """Find what is not named, cut the graph down to the picture, and set `steps` where they are given.

    `where` is the file's name for messages. Raises BadInput where something is not found or not clear,
    UnknownName for a node or input that is not there, Unsupported where steps cannot be set.
    """
    titles = {name: _title(name, node) for name, node in graph.items()}
    search = _Search(where, graph, names)
    picture = search.output()
    search.graph = graph = upstream(copy.deepcopy(graph), picture)
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


def upstream(graph: Graph, link: Sequence[Any]) -> Graph:
    """The nodes that `link` is made of, in the graph's order."""
    kept, todo = set(), [link[0]]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept.add(name)
            todo += [value[0] for value in graph[name]["inputs"].values() if is_link(value)]
    return {name: node for name, node in graph.items() if name in kept}


def is_sampler(node: Node) -> bool:
    """Whether the node draws from noise: a seed or a noise, with a model or a guider."""
    inputs = node["inputs"]
    return any(key in inputs for key in (*SEEDS, "noise")) and any(
        is_link(inputs.get(key)) for key in ("model", "guider")
    )


def texts_of(graph: Graph, sampler: str) -> list[Socket]:
    """The inputs where the texts that a sampler draws stand; behind a rewriter, the encoder's own input."""
    search = _Search("flow", graph, NamedSockets())
    encoders = dict.fromkeys(search._encoders(sampler))
    inputs = [
        Socket(node, key)
        for node in encoders
        for key in TEXTS
        if _may_be(graph[node]["inputs"].get(key), str)
    ]
    return [found for socket in inputs for found in search._texts(socket)]


def text_at(graph: Graph, socket: Socket) -> str:
    """The text at an input, also a linked one; behind a rewriter, what it was given."""
    return _Search("flow", graph, NamedSockets())._text(socket)


@dataclass
class _Search:
    """The search for one workflow's output, prompt, seed and steps; `where` and `names` are for messages."""

    where: str
    graph: Graph
    names: NamedSockets

    def output(self) -> tuple[str, int]:
        """The link to the picture that is saved, or previewed where none is saved."""
        found: dict[tuple[str, int], str] = {}
        if self.names.output is not None:
            name = self.names.output
            if name not in self.graph:
                raise UnknownName(f"node in {self.where}:", name, self.graph)
            found = self._pictures([name])
            if not found:
                raise BadInput(f"{self.where}: node {name} is given no images; name a Save or Preview node")
        for word in ("save", "preview"):
            found = found or self._pictures(
                name for name, node in self.graph.items() if word in node["class_type"].lower()
            )
        if not found:
            raise BadInput(f"{self.where} saves no picture; add a Save Image node and export it again")
        if len(found) > 1:
            raise self._unclear("output", {name: "" for name in found.values()})
        return next(iter(found))

    def _pictures(self, names: Iterable[str]) -> dict[tuple[str, int], str]:
        """Link to a picture -> the first of `names` that is given it."""
        found: dict[tuple[str, int], str] = {}
        for name in names:
            for key in ("images", "image"):
                link = self.graph[name]["inputs"].get(key)
                if is_link(link):
                    found.setdefault((link[0], link[1]), name)
        return found

    def prompts(self, samplers: Sequence[str]) -> list[Socket]:
        """Where the prompt goes: one text, wherever it stands."""
        if self.names.prompt is not None:
            return self._named("prompt", self.names.prompt, str, TEXTS)
        units: dict[str, list[Socket]] = {}  # the texts of an encode node -> its inputs, and those of equals
        for node in dict.fromkeys(node for name in samplers for node in self._encoders(name)):
            inputs = self.graph[node]["inputs"]
            literals = {key: self._texts(Socket(node, key)) for key in TEXTS if _may_be(inputs.get(key), str)}
            for sockets in literals.values():
                if len({self._text(s) for s in sockets}) > 1:
                    raise self._unclear("prompt", {str(s): self._text(s) for s in sockets})
            # An encoder of several texts gets the prompt in all of them, but for those left empty.
            sockets = [s for found in literals.values() for s in found]
            sockets = [s for s in sockets if self._text(s).strip()] or sockets
            if sockets:
                units.setdefault("\n".join(sorted({self._text(s) for s in sockets})), []).extend(sockets)
        if not units:
            texts = {
                str(Socket(name, key)): node["inputs"][key]
                for name, node in self.graph.items()
                for key in TEXTS
                if isinstance(node["inputs"].get(key), str)
            }
            if not texts:
                raise BadInput(f"{self.where} has no input for a prompt: no text reaches a sampler")
            raise self._unclear("prompt", texts)
        if len(units) > 1:
            raise self._unclear("prompt", {str(s[0]): self._text(s[0]) for s in units.values()})
        sockets = next(iter(units.values()))
        texts = {self._text(socket) for socket in sockets} - {""}
        # A judge or a second encoder that was given the same words goes with them.
        sockets += [
            Socket(name, key)
            for name, node in self.graph.items()
            for key in TEXTS
            if isinstance(node["inputs"].get(key), str) and node["inputs"][key] in texts
        ]
        for name, node in self.graph.items():
            if is_link(node["inputs"].get("judge")) and _may_be(node["inputs"].get("prompt"), str):
                judged = self._texts(Socket(name, "prompt"))
                if judged and not set(judged) & set(sockets):  # it would judge every job by the saved words
                    raise self._unclear("prompt", {str(s): self._text(s) for s in (sockets[0], judged[0])})
        return list(dict.fromkeys(sockets))

    def _encoders(self, sampler: str) -> list[str]:
        """The text encode nodes behind a sampler's positive conditioning."""
        inputs = self.graph[sampler]["inputs"]
        start = next((inputs[key] for key in ("positive", "guider") if is_link(inputs.get(key))), None)
        if start is None:  # a sampler that encodes its text by itself
            return [sampler] if any(_may_be(inputs.get(key), str) for key in TEXTS) else []
        found, seen, todo = [], set(), [start]
        while todo:
            name, slot = todo.pop(0)
            if (name, slot) in seen:
                continue
            seen.add((name, slot))
            links = self._conditioning(name, slot)
            inputs = self.graph[name]["inputs"]
            if not links and any(_may_be(inputs.get(key), str) for key in TEXTS):
                found.append(name)
            else:
                todo += links or [
                    value
                    for key, value in inputs.items()
                    if is_link(value) and not key.startswith(NO_CONDITIONING)
                ]
        return found

    def _conditioning(self, name: str, slot: int) -> list[list[Any]]:
        """The links that the conditioning at an output comes from, where inputs are named after it."""
        links = {key: value for key, value in self.graph[name]["inputs"].items() if is_link(value)}
        if "positive" in links:
            # Nodes with both give positive first; guiders have one output, which is guided towards it.
            return [links["negative" if slot == 1 and "negative" in links else "positive"]]
        if "cond1" in links:  # DualCFGGuider: the second one is its middle
            return [links["cond1"]]
        return [value for key, value in links.items() if key.startswith("conditioning")]

    def _texts(self, socket: Socket, seen: frozenset[str] = frozenset()) -> list[Socket]:
        """Where the text of an input stands: in itself, or in the nodes it is linked from."""
        value = self.graph[socket.node]["inputs"][socket.input]
        if isinstance(value, str):
            return [socket]
        source = value[0]
        inputs = self.graph[source]["inputs"]
        if self.graph[source]["class_type"] in REWRITERS:
            return [socket]
        if source in seen:
            return []
        found = [
            s
            for key, given in inputs.items()
            if _may_be(given, str) and key != "delimiter"
            for s in self._texts(Socket(source, key), seen | {source})
        ]
        return [s for s in found if self._text(s).strip()] or found[:1]

    def _text(self, socket: Socket) -> str:
        """The text at an input; behind a rewriter, what it was given."""
        value = self.graph[socket.node]["inputs"][socket.input]
        for _ in self.graph:
            if not is_link(value):
                break
            inputs = self.graph[value[0]]["inputs"]
            value = next((inputs[key] for key in TEXTS if _may_be(inputs.get(key), str)), "")
        return value if isinstance(value, str) else ""

    def seeds(self, samplers: Sequence[str]) -> list[Socket]:
        """The seeds of all samplers that make noise. A linked seed is cut off and set at the sampler."""
        if self.names.seed is not None:
            return self._named("seed", self.names.seed, int, SEEDS)
        found: list[Socket] = []
        for name in samplers:
            inputs = self.graph[name]["inputs"]
            if inputs.get("add_noise") in ("disable", False):
                continue
            found += [Socket(name, key) for key in SEEDS if key in inputs]
            if is_link(inputs.get("noise")):
                behind = upstream(self.graph, inputs["noise"])
                # What noise is made from, but not the seeds of samplers before it.
                found += [
                    Socket(node, key)
                    for node in behind
                    for key in SEEDS
                    if key in behind[node]["inputs"] and not is_sampler(behind[node])
                ]
        found = list(dict.fromkeys(found))
        if found:
            return found
        seeds = {
            str(Socket(name, key)): node["inputs"][key]
            for name, node in self.graph.items()
            for key in SEEDS
            if key in node["inputs"]
        }
        if not seeds:
            raise BadInput(
                f"{self.where} has no input for a seed, so all its pictures would be alike; draw "
                "with a node that takes one, such as KSampler"
            )
        raise self._unclear("seed", seeds)

    def set_steps(self, samplers: Sequence[str], steps: int | None) -> list[tuple[int, int]]:
        """(steps, denoiser rows a step) of each sampler, after `steps` were set where they are given."""
        found = {name: self._steps_of(name) for name in samplers}
        sockets = list(dict.fromkeys(s for s in found.values() if s is not None))
        if self.names.steps is not None:
            sockets = self._named("steps", self.names.steps, int, ("steps",))
        if steps is not None:
            if not sockets:
                raise Unsupported(f"--steps: {self.where} has no input for steps; leave it out")
            if any(self._partly(name) for name in samplers):
                raise Unsupported(
                    f"--steps: samplers of {self.where} share their steps by start_at_step and "
                    "end_at_step; leave it out and set all three in the workflow"
                )
            if len(sockets) > 1 and self.names.steps is None:
                raise self._unclear("steps", {str(s): self._value(s) for s in sockets})
            for socket in sockets:
                self.graph[socket.node]["inputs"][socket.input] = steps
        counted, seen = [], set()
        for name, socket in found.items():
            inputs = self.graph[name]["inputs"]
            if socket is None or ("sigmas" in inputs and socket in seen):  # the halves of one schedule
                continue
            seen.add(socket)
            whole = self._value(socket)
            if not isinstance(whole, int):
                continue
            start, end = inputs.get("start_at_step", 0), inputs.get("end_at_step", whole)
            taken = min(end, whole) - start if isinstance(start, int) and isinstance(end, int) else whole
            counted.append((max(0, taken), 2 if self._guided(name) else 1))
        return counted

    def _steps_of(self, sampler: str) -> Socket | None:
        """The sampler's own steps, or those behind its sigmas; a number, if linked then of its source."""
        sigmas = self.graph[sampler]["inputs"].get("sigmas")
        for name in [sampler, *(upstream(self.graph, sigmas) if is_link(sigmas) else ())]:
            if "steps" in self.graph[name]["inputs"]:
                return self._number(Socket(name, "steps"))
        return None

    def _number(self, socket: Socket) -> Socket:
        """Where a number stands: follows links through nodes with a single one."""
        for _ in self.graph:
            value = self._value(socket)
            if not is_link(value):
                break
            inputs = self.graph[value[0]]["inputs"]
            keys = [key for key, given in inputs.items() if _may_be(given, int)]
            if len(keys) != 1:
                break
            socket = Socket(value[0], keys[0])
        return socket

    def _value(self, socket: Socket) -> Any:
        return self.graph[socket.node]["inputs"][socket.input]

    def _partly(self, sampler: str) -> bool:
        """Whether the sampler takes some of its steps only."""
        inputs = self.graph[sampler]["inputs"]
        end, steps = inputs.get("end_at_step"), inputs.get("steps")
        return bool(inputs.get("start_at_step")) or (
            isinstance(end, int) and isinstance(steps, int) and end < steps
        )

    def _guided(self, sampler: str) -> bool:
        """Whether a step evaluates the negative prompt, too: a cfg other than 1."""
        inputs = self.graph[sampler]["inputs"]
        if is_link(inputs.get("guider")):
            inputs = self.graph[inputs["guider"][0]]["inputs"]
        return inputs.get("cfg", 1) != 1

    def _named(self, what: str, words: str, kind: type, usual: Sequence[str]) -> list[Socket]:
        """The sockets that the user named, checked."""
        sockets = []
        for word in words.split("+"):
            node, dot, key = word.strip().rpartition(".")
            if not dot:
                node = key
            if node not in self.graph:
                raise UnknownName(
                    f"node for {what} among those that make the picture of {self.where}:", node, self.graph
                )
            inputs = self.graph[node]["inputs"]
            if not dot:
                fit = [name for name in usual if _may_be(inputs.get(name), kind)]
                if len(fit) != 1:
                    has = {f"{node}.{name}": value for name, value in inputs.items() if _may_be(value, kind)}
                    raise self._unclear(what, has or {f"{node}.{name}": "" for name in inputs})
                key = fit[0]
            if key not in inputs:
                raise UnknownName(f"input of node {node} in {self.where}:", key, inputs)
            if not _may_be(inputs[key], kind):
                wanted = "a text" if kind is str else "a whole number"
                raise BadInput(
                    f"{self.where}: {what}={node}.{key} is no input for {wanted}, it holds "
                    f"{inputs[key]!r:.40}"
                )
            sockets.append(Socket(node, key))
        return list(dict.fromkeys(sockets))

    def _unclear(self, what: str, candidates: dict[str, Any]) -> BadInput:
        """The refusal to guess: every candidate with what it holds, and how to name one."""
        shown = []
        for name, value in list(candidates.items())[:FEW]:
            node = self.graph[name if name in self.graph else name.rpartition(".")[0]]
            text = "" if value == "" or is_link(value) else f" {_short(value)}"
            shown.append(f"{name}{text} ({_class(node)})")
        more = f" and {len(candidates) - FEW} more" if len(candidates) > FEW else ""
        first = next(iter(candidates), "NODE.INPUT")
        which = "node that has the picture" if what == "output" else f"input for {what}"
        return BadInput(
            f"{self.where}: the {which} is not clear; it could be {', '.join(shown)}{more}; name "
            f"it, for example {Path(self.where).name},{what}={first}"
        )


def _may_be(value: Any, kind: type) -> bool:
    """Whether an input holds a value of this kind, or a link that may bring one."""
    return is_link(value) or (isinstance(value, kind) and not isinstance(value, bool))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…'"


def _class(node: Node) -> str:
    title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), dict) else None
    kind = node["class_type"]
    return f"{title}, {kind}" if isinstance(title, str) and title and title != kind else kind


def _title(name: str, node: Node) -> str:
    return f"node {name} ({_class(node)})"
