"""The search for a workflow's picture, prompt, seed and steps.

Where more than one input could be meant, nothing is guessed: the candidates are listed, and the user names
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import FEW, BadInput, UnknownName, Unsupported
from .graph import SEEDS, Graph, Socket, describe, is_link, is_sampler, may_hold, shorten, upstream, value_at
from .texts import TEXTS, encoders, text_at, text_sockets


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
    """Finds the inputs of one workflow. `where`: its file, for messages; `names`: what the user named."""

    where: str
    graph: Graph
    names: NamedSockets

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
        if not pictures:
            raise BadInput(f"{self.where} saves no picture; add a Save Image node and export it again")
        if len(pictures) > 1:
            raise self._ambiguous("output", {name: "" for name in pictures.values()})
        return next(iter(pictures))

    def _pictures(self, names: Iterable[str]) -> dict[tuple[str, int], str]:
        """Link to a picture -> the first of the nodes `names` that gets it."""
        pictures: dict[tuple[str, int], str] = {}
        for name in names:
            for key in ("images", "image"):
                link = self.graph[name]["inputs"].get(key)
                if is_link(link):
                    pictures.setdefault((link[0], link[1]), name)
        return pictures

    def prompts(self, samplers: Sequence[str]) -> list[Socket]:
        """Where the prompt goes: one text, in all the inputs that hold it."""
        if self.names.prompt is not None:
            return self._named("prompt", self.names.prompt, str, TEXTS)
        groups = self._encoded_texts(samplers)
        if not groups:
            texts = self._literals()
            if not texts:
                raise BadInput(f"{self.where} has no input for a prompt: no text reaches a sampler")
            raise self._ambiguous("prompt", {str(socket): text for socket, text in texts.items()})
        if len(groups) > 1:
            raise self._ambiguous("prompt", self._with_texts(sockets[0] for sockets in groups.values()))
        sockets = next(iter(groups.values()))
        texts = {text_at(self.graph, socket) for socket in sockets} - {""}
        # A judge or a second encoder that holds the same text gets the prompt, too.
        sockets += [socket for socket, text in self._literals().items() if text in texts]
        for name, node in self.graph.items():
            if is_link(node["inputs"].get("judge")) and may_hold(node["inputs"].get("prompt"), str):
                judged = text_sockets(self.graph, Socket(name, "prompt"))
                if judged and not set(judged) & set(sockets):  # it would judge every job by the saved text
                    raise self._ambiguous("prompt", self._with_texts((sockets[0], judged[0])))
        return list(dict.fromkeys(sockets))

    def _encoded_texts(self, samplers: Sequence[str]) -> dict[str, list[Socket]]:
        """Each text that reaches a sampler -> the inputs that hold it. An encoder of several texts counts as
        one: it gets the prompt in all its inputs but the empty ones."""
        groups: dict[str, list[Socket]] = {}
        for node in dict.fromkeys(node for name in samplers for node in encoders(self.graph, name)):
            sockets: list[Socket] = []
            for key in TEXTS:
                if may_hold(self.graph[node]["inputs"].get(key), str):
                    origins = text_sockets(self.graph, Socket(node, key))
                    if len({text_at(self.graph, origin) for origin in origins}) > 1:
                        raise self._ambiguous("prompt", self._with_texts(origins))
                    sockets += origins
            sockets = [socket for socket in sockets if text_at(self.graph, socket).strip()] or sockets
            if sockets:
                texts = sorted({text_at(self.graph, socket) for socket in sockets})
                groups.setdefault("\n".join(texts), []).extend(sockets)
        return groups

    def _literals(self) -> dict[Socket, str]:
        """All texts that stand in an input themselves."""
        return {
            Socket(name, key): node["inputs"][key]
            for name, node in self.graph.items()
            for key in TEXTS
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
            node, dot, key = word.strip().rpartition(".")
            if not dot:
                node = key
            if node not in self.graph:
                raise UnknownName(
                    f"node for {what} among those that make the picture of {self.where}:", node, self.graph
                )
            inputs = self.graph[node]["inputs"]
            if not dot:
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
            node = self.graph[name if name in self.graph else name.rpartition(".")[0]]
            text = "" if value == "" or is_link(value) else f" {shorten(value)}"
            listed.append(f"{name}{text} ({describe(node)})")
        more = f" and {len(candidates) - FEW} more" if len(candidates) > FEW else ""
        first = next(iter(candidates), "NODE.INPUT")
        which = "node that has the picture" if what == "output" else f"input for {what}"
        return BadInput(
            f"{self.where}: the {which} is not clear; it could be {', '.join(listed)}{more}; name "
            f"it, for example {Path(self.where).name},{what}={first}"
        )
