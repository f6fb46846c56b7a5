"""The search for a workflow's picture, prompt, seed and steps.

Where more than one input could be meant, nothing is guessed: the candidates are listed, and the user names
one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import FEW, BadInput, UnknownName, Unsupported
from .graph import (
    SEEDS,
    Graph,
    Socket,
    describe,
    is_link,
    is_sampler,
    may_hold,
    shorten,
    split_socket,
    upstream,
    value_at,
)
from .texts import TEXTS, OutputNames, conditioning, no_names, text_at, text_keys, text_sockets, texts_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedSockets:
    """Sockets that the user named, which are not searched for: as "6.text" ("6" where the node has one such
    input), several with "+"; `output` is a Save or Preview node."""

    prompt: str | None = None
    seed: str | None = None
    steps: str | None = None
    output: str | None = None


@dataclass
class SocketSearch:
    """Finds the inputs of one workflow. `where`: its file, for messages; `names`: what the user named;
    `outputs`: the names of a class's outputs, where a server says them."""

    where: str
    graph: Graph
    names: NamedSockets
    outputs: OutputNames = no_names

    def output(self) -> tuple[str, int]:
        """The link to the picture that is saved, or previewed where none is saved."""
        pictures: dict[tuple[str, int], str] = {}
        if self.names.output is not None:
            name = self.names.output
            if name not in self.graph:
                raise UnknownName(f"node in {self.where}:", name, self.graph)
            pictures = self._pictures([name])
            if not pictures:
                raise BadInput(f"{self.where}: node {name} is given no images; name a Save or Preview node")
        for word in ("save", "preview"):
            pictures = pictures or self._pictures(
                name for name, node in self.graph.items() if word in node["class_type"].lower()
            )
        if not pictures:  # what packs end a workflow with: a websocket, a viewer, a video
            used = {
                value[0]
                for node in self.graph.values()
                for value in node["inputs"].values()
                if is_link(value)
            }
            pictures = self._pictures(name for name in self.graph if name not in used)
        if not pictures:
            raise BadInput(f"{self.where} saves no picture; add a Save Image node and export it again")
        if len(pictures) > 1:
            raise self._ambiguous("output", {name: "" for name in pictures.values()})
        return next(iter(pictures))

    def _pictures(self, names: Iterable[str]) -> dict[tuple[str, int], str]:
        """Link to a picture -> the first of the nodes `names` that gets it; for one that gets a video, what
        that is made from."""
        pictures: dict[tuple[str, int], str] = {}
        for name in names:
            inputs = self.graph[name]["inputs"]
            if is_link(inputs.get("video")):
                inputs = self.graph[inputs["video"][0]]["inputs"]
            for key in ("images", "image"):
                link = inputs.get(key)
                if is_link(link):
                    pictures.setdefault((link[0], link[1]), name)
        return pictures

    def prompts(self, samplers: Sequence[str]) -> list[Socket]:
        """Where the prompt goes: one text, in all the inputs that hold it."""
        behind = {name: conditioning(self.graph, name, self.outputs) for name in samplers}
        zeroed = [(name, one.zeroed[0]) for name, one in behind.items() if one.zeroed and not one.encoders]
        if self.names.prompt is not None:
            if zeroed and not any(one.encoders for one in behind.values()):
                log.warning("%s", self._no_effect(*zeroed[0]))
            return self._named("prompt", self.names.prompt, str, TEXTS)
        groups = self._encoded_texts(
            list(dict.fromkeys(found for one in behind.values() for found in one.encoders))
        )
        if not groups and zeroed:
            raise BadInput(
                f"{self._no_effect(*zeroed[0])}; give the sampler the text encoder's own output, or name an "
                "input with prompt=NODE.INPUT"
            )
        if not groups:
            texts = self._literals(any_name=True)
            if not texts:
                raise BadInput(f"{self.where} has no input for a prompt: no text reaches a sampler")
            raise self._ambiguous("prompt", {str(socket): text for socket, text in texts.items()})
        if len(groups) > 1:
            raise self._ambiguous("prompt", self._with_texts(sockets[0] for sockets in groups.values()))
        sockets = next(iter(groups.values()))
        texts = {text for socket in sockets if (text := text_at(self.graph, socket)).strip()}
        # A judge or a second encoder that holds the same text gets the prompt, too.
        negative = {one for name in samplers for one in texts_of(self.graph, name, self.outputs, "negative")}
        sockets += [
            socket for socket, text in self._literals().items() if text in texts and socket not in negative
        ]
        for name, node in self.graph.items():
            if is_link(node["inputs"].get("judge")) and may_hold(node["inputs"].get("prompt"), str):
                judged = text_sockets(self.graph, Socket(name, "prompt"))
                if judged and not set(judged) & set(sockets):  # it would judge every job by the saved text
                    raise self._ambiguous("prompt", self._with_texts((sockets[0], judged[0])))
        return list(dict.fromkeys(sockets))

    def _no_effect(self, sampler: str, zero: str) -> str:
        nodes = [f"node {name} ({describe(self.graph[name])})" for name in (zero, sampler)]
        return f"{self.where}: the prompt has no effect: {nodes[0]} zeroes what reaches {nodes[1]}"

    def _encoded_texts(self, encoders: Sequence[tuple[str, str]]) -> dict[str, list[Socket]]:
        """Each text of the encoders (node, side) -> the inputs that hold it. An encoder of several texts
        counts as one: it gets the prompt in all its inputs but the empty ones."""
        groups: dict[str, list[Socket]] = {}
        for node, side in encoders:
            sockets: list[Socket] = []
            for key in text_keys(self.graph[node]["inputs"], side):
                own = Socket(node, key)
                origins = text_sockets(self.graph, own, side)
                if len({text_at(self.graph, origin, side) for origin in origins}) > 1:
                    # The encoder's own input comes first: there the prompt stands as it is given.
                    raise self._ambiguous("prompt", {str(own): "", **self._with_texts(origins)})
                sockets += origins
            sockets = [socket for socket in sockets if self._holds_something(socket, side)] or sockets
            if sockets:
                texts = sorted({text_at(self.graph, socket, side) for socket in sockets})
                groups.setdefault("\n".join(texts), []).extend(sockets)
        return groups

    def _holds_something(self, socket: Socket, side: str) -> bool:
        """A text, or a link to what makes one."""
        return is_link(value_at(self.graph, socket)) or bool(text_at(self.graph, socket, side).strip())

    def _literals(self, any_name: bool = False) -> dict[Socket, str]:
        """All texts that stand in an input themselves, of the usual names or of any that means a text."""
        return {
            Socket(name, key): node["inputs"][key]
            for name, node in self.graph.items()
            for key in (text_keys(node["inputs"]) if any_name else TEXTS)
            if isinstance(node["inputs"].get(key), str)
        }

    def _with_texts(self, sockets: Iterable[Socket]) -> dict[str, str]:
        return {str(socket): text_at(self.graph, socket) for socket in sockets}

    def seeds(self, samplers: Sequence[str]) -> list[Socket]:
        """The seeds of all samplers that make noise. A linked seed is cut off and set at the sampler."""
        if self.names.seed is not None:
            return self._named("seed", self.names.seed, int, SEEDS)
        sockets: list[Socket] = []
        for name in samplers:
            inputs = self.graph[name]["inputs"]
            if inputs.get("add_noise") in ("disable", False):
                continue
            sockets += [Socket(name, key) for key in SEEDS if key in inputs]
            if is_link(inputs.get("noise")):
                behind = upstream(self.graph, inputs["noise"])
                # What noise is made from, but not the seeds of samplers before it.
                sockets += [
                    Socket(node, key)
                    for node in behind
                    for key in SEEDS
                    if key in behind[node]["inputs"] and not is_sampler(behind[node])
                ]
        if sockets:
            return list(dict.fromkeys(sockets))
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
        raise self._ambiguous("seed", seeds)

    def set_steps(self, samplers: Sequence[str], steps: int | None) -> list[tuple[int, int]]:
        """(steps, denoiser rows a step) of each sampler, after `steps` were set where they are given."""
        by_sampler = {name: self._steps_of(name) for name in samplers}
        sockets = list(dict.fromkeys(socket for socket in by_sampler.values() if socket is not None))
        if self.names.steps is not None:
            sockets = self._named("steps", self.names.steps, int, ("steps",))
        if steps is not None:
            if not sockets:
                raise Unsupported(f"--steps: {self.where} has no input for steps; leave it out")
            if any(self._takes_part(name) for name in samplers):
                raise Unsupported(
                    f"--steps: samplers of {self.where} share their steps by start_at_step and "
                    "end_at_step; leave it out and set all three in the workflow"
                )
            if len(sockets) > 1 and self.names.steps is None:
                raise self._ambiguous("steps", {str(one): value_at(self.graph, one) for one in sockets})
            for socket in sockets:
                self.graph[socket.node]["inputs"][socket.input] = steps
        counts, seen = [], set()
        for name, socket in by_sampler.items():
            inputs = self.graph[name]["inputs"]
            if socket is None or ("sigmas" in inputs and socket in seen):  # the halves of one schedule
                continue
            seen.add(socket)
            whole = value_at(self.graph, socket)
            if not isinstance(whole, int):
                continue
            start, end = inputs.get("start_at_step", 0), inputs.get("end_at_step", whole)
            taken = min(end, whole) - start if isinstance(start, int) and isinstance(end, int) else whole
            counts.append((max(0, taken), 2 if self._guided(name) else 1))
        return counts

    def _steps_of(self, sampler: str) -> Socket | None:
        """The input that holds the sampler's steps, its own or those behind its sigmas."""
        sigmas = self.graph[sampler]["inputs"].get("sigmas")
        for name in [sampler, *(upstream(self.graph, sigmas) if is_link(sigmas) else ())]:
            if "steps" in self.graph[name]["inputs"]:
                return self._number(Socket(name, "steps"))
        return None

    def _number(self, socket: Socket) -> Socket:
        """The input that holds a number: follows links through nodes with a single number."""
        for _ in self.graph:
            value = value_at(self.graph, socket)
            if not is_link(value):
                break
            inputs = self.graph[value[0]]["inputs"]
            keys = [key for key, held in inputs.items() if may_hold(held, int)]
            if len(keys) != 1:
                break
            socket = Socket(value[0], keys[0])
        return socket

    def _takes_part(self, sampler: str) -> bool:
        """Whether the sampler takes only a part of its steps."""
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
            node, key = split_socket(self.graph, word.strip())
            if node not in self.graph:
                raise UnknownName(
                    f"node for {what} among those that make the picture of {self.where}:", node, self.graph
                )
            inputs = self.graph[node]["inputs"]
            if not key:
                fit = [name for name in usual if may_hold(inputs.get(name), kind)]
                if len(fit) != 1:
                    has = {f"{node}.{name}": value for name, value in inputs.items() if may_hold(value, kind)}
                    raise self._ambiguous(what, has or {f"{node}.{name}": "" for name in inputs})
                key = fit[0]
            if key not in inputs:
                raise UnknownName(f"input of node {node} in {self.where}:", key, inputs)
            if not may_hold(inputs[key], kind):
                wanted = "a text" if kind is str else "a whole number"
                raise BadInput(
                    f"{self.where}: {what}={node}.{key} is no input for {wanted}, it holds "
                    f"{inputs[key]!r:.40}"
                )
            sockets.append(Socket(node, key))
        return list(dict.fromkeys(sockets))

    def _ambiguous(self, what: str, candidates: dict[str, Any]) -> BadInput:
        """The error that lists every candidate with what it holds, and says how to name one."""
        listed = []
        for name, value in list(candidates.items())[:FEW]:
            node = self.graph[split_socket(self.graph, name)[0]]
            text = "" if value == "" or is_link(value) else f" {shorten(value)}"
            listed.append(f"{name}{text} ({describe(node)})")
        more = f" and {len(candidates) - FEW} more" if len(candidates) > FEW else ""
        first = next(iter(candidates), "NODE.INPUT")
        which = "node that has the picture" if what == "output" else f"input for {what}"
        return BadInput(
            f"{self.where}: the {which} is not clear; it could be {', '.join(listed)}{more}; name "
            f"it, for example {Path(self.where).name},{what}={first}"
        )
