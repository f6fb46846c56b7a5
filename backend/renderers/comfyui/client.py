"""One ComfyUI server: graphs in, pictures out, over HTTP and its websocket.

Source: the routes and messages of ComfyUI's server.py and execution.py (0.33.0). A picture comes as a binary
message of SaveImageWebsocket, so that nothing is left on the server's disk. A server without that node gets a
PreviewImage, whose file is fetched from the temp folder.

A fault of the server (down, silent, an answer that is not ComfyUI's) is `ServerLost`: another server, or the
same one later, may do the work. What it reports about the graph is a RepriseError.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed, Unsupported, first_line
from ...net.credentials import COMFYUI, check_address, find_key, key_header
from ...net.http import HttpAnswer, HttpClient, HttpFault, quote, websocket_options
from .graph import Graph
from .workflow import SINK, Workflow

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0  # for a short answer: a server that loads a model is slow with all of them
QUEUE_CHECK_SECONDS = 5.0  # without a message, before the queue is asked whether a run is still there
MAX_BYTES = 256 * 2**20  # of an answer or a message: a large picture as PNG
SOCKET_SINK, FILE_SINK = "SaveImageWebsocket", "PreviewImage"
PREVIEW, PREVIEW_WITH_METADATA = 1, 4  # kinds of binary messages
# Custom nodes and the editor have other ones.
MESSAGE_TYPES = (
    "status",
    "progress",
    "progress_state",
    "executing",
    "executed",
    "execution_start",
    "execution_cached",
    "execution_error",
    "execution_interrupted",
    "execution_success",
)


class ServerLost(Exception):
    """The server is down or silent, or its answer is not one of ComfyUI's."""


class NoPicture(Exception):
    """A run ended without a readable picture, or was stopped on the server."""


@dataclass
class QueuedGraph:
    """A queued graph and its results so far.

    `frames` are pictures that came over the websocket, with the node among `sinks` that sent each. `outputs`
    are what nodes say that they have saved, as a server's history has it.
    """

    progress: Callable[[str, float], None] = lambda node, share: None
    sinks: frozenset[str] = frozenset({SINK})
    last_message: float = field(default_factory=time.monotonic)
    frames: list[tuple[str, bytes]] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: Exception | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def files(self, node: str, kind: str = "images") -> list[dict[str, Any]]:
        """What `node` has saved of a kind: objects with filename, subfolder and type."""
        found = self.outputs.get(node, {}).get(kind)
        return [file for file in found if isinstance(file, dict)] if isinstance(found, list) else []

    def fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.done.set()


class ComfyUIClient:
    """A client of the server at `url`, in one event loop. `connected` while its websocket is open, `tried`
    after the first attempt to connect, `reason` why it is not connected.

    `silence`: seconds without a message about a run, its wait in the queue left out, before the server counts
    as lost. `client_id` marks all that this client queues. `kept`: names of runs that an earlier process with
    this `client_id` has queued, and that are not taken back when it connects.
    """

    def __init__(self, url: str, client_id: str, silence: float):
        self.url, self.client_id, self.silence = url, client_id, silence
        self.connected, self.tried, self.reason = False, False, "it has not answered yet"
        self.was_lost = False  # after it had been connected
        self.version, self.sink = "", FILE_SINK
        self.runs: dict[str, QueuedGraph] = {}
        self.kept: set[str] = set()
        key, self._advice = find_key(url, COMFYUI)
        self.http = HttpClient(
            url, timeout=ANSWER_SECONDS, max_bytes=MAX_BYTES, key=key, key_header=key_header(COMFYUI)
        )
        self._left_out: set[str] = set()  # what was said of parts of workflows
        self._remaining = 0  # runs in its queue, others' included
        self._executing: tuple[str, str] | None = None  # (prompt_id, node)
        self._socket: ClientConnection | None = None
        self._lost: ServerLost | None = None  # the reason given to `disconnect`

    @property
    def load(self) -> int:
        """How many runs are before a new one."""
        return max(self._remaining, len(self.runs))

    async def close(self) -> None:
        await self.http.close()

    async def probe(self) -> str:
        """What decides a picture beside the graph: versions and kind of device."""
        answer = await self._send("GET", "system_stats")
        try:
            stats = json.loads(answer.body)
            system, devices = stats["system"], stats["devices"]
            kinds = sorted({str(device["type"]) for device in devices})
            torch = system.get("pytorch_version", "?")
            self.version = f"ComfyUI {system['comfyui_version']}, torch {torch}, {'+'.join(kinds)}"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerLost(f"it is no ComfyUI {self._quoted(answer)}") from error
        return self.version

    async def serve(self, changed: Callable[[], None]) -> None:
        """Connect, and handle the server's messages until the connection breaks: ends in ServerLost."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            await self.probe()
            answer = await self._send("GET", f"object_info/{SOCKET_SINK}")
            self.sink = SOCKET_SINK if answer.status == 200 and SOCKET_SINK in answer.json else FILE_SINK
            async with connect(
                f"ws{self.url.removeprefix('http')}/ws?clientId={self.client_id}",
                max_size=MAX_BYTES,
                ping_timeout=ANSWER_SECONDS,
                close_timeout=1,
                additional_headers=self.http.key_headers,
                **websocket_options(self.url),
            ) as socket:
                features = {"supports_preview_metadata": True}
                await socket.send(json.dumps({"type": "feature_flags", "data": features}))
                # What it still has of a connection that broke.
                self._remaining = await self.cancel_runs(self.kept)
                self.connected, self.tried, self._executing, self._lost = True, True, None, None
                self._socket = socket
                if self.was_lost:
                    log.warning("%s answers again", self.url)
                changed()
                async for message in socket:
                    self._handle(message)
                    changed()
            raise self._lost or ServerLost("it closed the connection")
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            raise self._lost or ServerLost(f"the websocket broke: {first_line(error)}") from error

    def disconnect(self, reason: ServerLost) -> None:
        """Break the connection, so that `serve` ends with this reason."""
        if self.connected and self._lost is None:
            self._lost = reason
            assert self._socket is not None
            self._socket.transport.abort()

    def give_up_runs(self, reason: ServerLost) -> None:
        """Fail all its runs, and note that it is not connected."""
        self.was_lost = self.was_lost or self.connected
        self.connected, self.tried, self.reason = False, True, str(reason)
        for run in self.runs.values():
            run.fail(reason)
        self.runs.clear()

    async def draw(self, workflow: Workflow, graph: Graph, progress: Callable[[str, float], None]) -> bytes:
        """The picture of a graph, as an encoded file. `progress(node, share done)` is called as nodes work.

        Raises as `run`, and NoPicture.
        """
        run = QueuedGraph(progress)
        await self.run(graph, str(uuid.uuid4()), run, workflow.title)
        pictures = [frame for _, frame in run.frames] or [
            await self.fetch_file(file) for file in run.files(SINK)
        ]
        if not pictures:
            raise NoPicture("the run ended without a picture")
        if len(pictures) > 1:
            raise Unsupported(
                f"the workflow gives {len(pictures)} pictures for one seed; set its batch size to 1"
            )
        return pictures[0]

    async def run(self, graph: Graph, name: str, run: QueuedGraph, title: Callable[[str], str]) -> None:
        """Queue a graph as `name`, a UUID, and wait until it is done. `title` names nodes in messages.

        Raises ServerLost, NoPicture where it was stopped, Unsupported where the server refuses the graph, and
        RenderFailed where a node fails.
        """
        self.runs[name] = run
        try:
            await self._queue_graph(title, graph, name)
            await self._wait(name, run, title)
        finally:
            self.runs.pop(name, None)

    async def adopt(self, name: str, run: QueuedGraph, title: Callable[[str], str]) -> bool:
        """Wait for a run that an earlier process has queued; False where the server does not have it, or it
        was not finished. Raises as `run`."""
        self.runs[name] = run
        try:
            pending, running = await self._queue()
            if any(entry[1] == name for entry in pending + running):
                try:
                    await self._wait(name, run, title)
                except NoPicture:
                    pass  # it left the queue before the first message came
            if not run.done.is_set() or not (run.outputs or run.frames):
                run.outputs = await self.history(name)
            return bool(run.outputs or run.frames)
        finally:
            self.kept.discard(name)
            self.runs.pop(name, None)

    async def history(self, name: str) -> dict[str, dict[str, Any]]:
        """What the nodes of a finished run have saved; empty where the server knows of no such run."""
        answer = await self._send("GET", f"history/{name}")
        entry = answer.json.get(name)
        if not isinstance(entry, dict):
            return {}
        status, outputs = entry.get("status"), entry.get("outputs")
        finished = isinstance(status, dict) and status.get("status_str") == "success"
        return outputs if finished and isinstance(outputs, dict) else {}

    async def _wait(self, name: str, run: QueuedGraph, title: Callable[[str], str]) -> None:
        await self._wait_for_run(name, run)
        if isinstance(run.error, _NodeError):
            raise RenderFailed(f"{self.url}: {title(run.error.node)} failed: {run.error}")
        if run.error is not None:
            raise run.error

    async def _queue_graph(self, title: Callable[[str], str], graph: Graph, name: str) -> None:
        request = {
            "prompt": graph,
            "client_id": self.client_id,
            "prompt_id": name,
            "extra_data": {"preview_method": "none"},
        }
        answer = await self._send("POST", "prompt", json=request)
        accepted = answer.json
        if answer.status == 400 and "error" in accepted:
            raise Unsupported(f"{self.url} cannot run the workflow: {_refusal(title, accepted)}")
        if answer.status != 200 or not isinstance(accepted.get("prompt_id"), str):
            raise ServerLost(f"it does not take the workflow {self._quoted(answer)}")
        if accepted["prompt_id"] != name:
            raise Unsupported(f"{self.url} runs an old ComfyUI, which names runs by itself; update it")
        if accepted.get("node_errors"):  # it draws what it can of several outputs
            left_out = _refusal(title, {"error": "", **accepted})
            if left_out not in self._left_out:
                self._left_out.add(left_out)
                log.warning("%s leaves out a part of the workflow: %s", self.url, left_out)

    async def _wait_for_run(self, name: str, run: QueuedGraph) -> None:
        missing = False
        while not run.done.is_set():
            await wait_for_event(run.done, min(QUEUE_CHECK_SECONDS, self.silence))
            quiet = time.monotonic() - run.last_message
            if run.done.is_set() or quiet < min(QUEUE_CHECK_SECONDS, self.silence):
                continue
            pending, running = await self._queue()
            if any(entry[1] == name for entry in pending):
                run.last_message, missing = time.monotonic(), False  # its turn has not come
            elif any(entry[1] == name for entry in running):
                missing = False
                if time.monotonic() - run.last_message > self.silence:
                    raise ServerLost(f"it said nothing about a picture for {self.silence:g} s")
            elif missing:  # twice: the last message may have been on its way
                raise NoPicture("it is no longer in the server's queue; somebody may have cleared it")
            else:
                missing = True

    def _quoted(self, answer: HttpAnswer) -> str:
        """An answer that is not what was expected; of a refused token, what to do."""
        advice = f"; {self._advice}" if answer.status in (401, 403) and not self.http.key else ""
        return f"({answer.status}: {self.http.quote(answer.body)}{advice})"

    async def cancel_runs(self, kept: Collection[str] = ()) -> int:
        """Take what this client has queued out of the queue, and interrupt what runs of it, all but `kept`;
        the number of others' runs and of those, which go on."""
        queue = await self._queue()
        pending, running = (
            [
                entry[1]
                for entry in entries
                if entry[3].get("client_id") == self.client_id and entry[1] not in kept
            ]
            for entries in queue
        )
        if pending:
            await self._send("POST", "queue", json={"delete": pending})
        for name in running:
            await self._send("POST", "interrupt", json={"prompt_id": name})
        return sum(map(len, queue)) - len(pending) - len(running)

    async def _queue(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """Pending and running runs: entries [number, prompt_id, graph, extra_data, …]."""
        answer = await self._send("GET", "queue")
        try:
            queue = json.loads(answer.body)
            pending, running = queue["queue_pending"], queue["queue_running"]
            if all(isinstance(entry[1], str) and isinstance(entry[3], dict) for entry in pending + running):
                return pending, running
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            pass
        raise ServerLost(f"it does not show its queue {self._quoted(answer)}")

    async def fetch_file(self, file: dict[str, Any]) -> bytes:
        params = {key: str(file.get(key, "")) for key in ("filename", "subfolder", "type")}
        answer = await self._send("GET", "view", params=params)
        if answer.status != 200:
            raise NoPicture(f"{params['filename']!r} cannot be fetched {self._quoted(answer)}")
        return answer.body

    async def upload(self, name: str, content: bytes, folder: str) -> str:
        """Put a picture into `folder` of the server's input folder; its name for a node that loads pictures.

        Raises ServerLost, and RenderFailed where the server does not take it.
        """
        answer = await self._send(
            "POST",
            "upload/image",
            files={"image": (name, content)},
            data={"subfolder": folder, "type": "input", "overwrite": "true"},
        )
        stored = answer.json.get("name")
        if answer.status != 200 or not isinstance(stored, str):
            raise RenderFailed(f"{self.url} does not take the picture {name} {self._quoted(answer)}")
        subfolder = answer.json.get("subfolder")
        return f"{subfolder}/{stored}" if subfolder else stored

    async def _send(self, method: str, path: str, **options: Any) -> HttpAnswer:
        try:
            return await self.http.send(method, path, **options)
        except HttpFault as fault:
            raise ServerLost(fault.describe("it")) from fault

    def _handle(self, message: str | bytes) -> None:
        """One message of the websocket."""
        if isinstance(message, bytes):
            return self._handle_picture(message)
        try:
            parsed = json.loads(message)
            kind, data = parsed["type"], parsed.get("data")
            if kind not in MESSAGE_TYPES:
                return
            if kind == "status":
                self._remaining = int(data["status"]["exec_info"]["queue_remaining"])
                return
            run, node = self.runs.get(str(data.get("prompt_id"))), data.get("node")
            if kind == "executing":
                self._executing = (str(data.get("prompt_id")), str(node)) if node is not None else None
            if run is None:  # of a run that is over, or another client's
                return
            run.last_message = time.monotonic()
            if kind == "progress" and data["max"]:
                run.progress(str(node), min(1.0, max(0.0, data["value"] / data["max"])))
            elif kind == "executed":
                if isinstance(data.get("output"), dict):
                    run.outputs[str(node)] = data["output"]
            elif kind == "execution_error":
                run.fail(_NodeError(str(data.get("node_id")), _exception_text(data)))
            elif kind == "execution_interrupted":
                run.fail(NoPicture("it was stopped on the server"))
            elif kind == "execution_success" or (kind == "executing" and node is None):
                run.done.set()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ServerLost(f"its message is none of ComfyUI's: {quote(message)}") from error

    def _handle_picture(self, message: bytes) -> None:
        """A binary message: kind, then for a preview of a node the format or its metadata, then a picture."""
        if len(message) < 8:
            return
        try:
            kind, second = struct.unpack_from(">II", message)
            if kind == PREVIEW_WITH_METADATA:
                metadata = json.loads(message[8 : 8 + second])
                source = str(metadata["prompt_id"]), str(metadata["node_id"])
                picture = message[8 + second :]
            elif kind == PREVIEW:
                source, picture = self._executing, message[8:]
            else:
                return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerLost(f"its picture's message is none of ComfyUI's: {quote(message)}") from error
        run = self.runs.get(source[0]) if source else None
        if run is not None and source is not None:
            run.last_message = time.monotonic()
            if source[1] in run.sinks:
                run.frames.append((source[1], picture))


class _NodeError(Exception):
    """An exception of a node; names the node."""

    def __init__(self, node: str, why: str):
        super().__init__(why)
        self.node = node


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()


def check_server(url: str) -> str:
    """A server's address. Raises BadInput where it is none."""
    return check_address(url, COMFYUI.example)


def _exception_text(data: dict[str, Any]) -> str:
    kind = str(data.get("exception_type", "")).rpartition(".")[2]
    message = str(data.get("exception_message", "")).strip() or "it gave no reason"
    return f"{kind + ': ' if kind else ''}{quote(message)}"


def _refusal(title: Callable[[str], str], answer: dict[str, Any]) -> str:
    """Why a server does not take a graph, in one line: the first error of each node, three at most."""
    faults, node_errors = [], answer.get("node_errors")
    for node, entry in node_errors.items() if isinstance(node_errors, dict) else ():
        errors = entry.get("errors") if isinstance(entry, dict) else None
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            text = " ".join(str(errors[0].get(key, "")).strip() for key in ("message", "details"))
            faults.append(f"{title(str(node))}: {quote(text)}")
    if faults:
        return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more nodes" if len(faults) > 3 else "")
    error = answer["error"]
    return quote(str(error.get("message", error)) if isinstance(error, dict) else str(error))
