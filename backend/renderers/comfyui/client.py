"""One ComfyUI server: graphs in, pictures out, over HTTP and its websocket.

Source: the routes and messages of ComfyUI's server.py and execution.py (0.33.0). A picture comes as a binary
message of SaveImageWebsocket, so that nothing is left on the server's disk; a server without that node gets a
PreviewImage, whose file of the temp folder is fetched.

What is the server's own fault (down, silent, rubbish) is `ServerLost`: another server, or the same one later,
may do it. What it says about the graph is a RepriseError in one line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import RenderFailed, Unsupported, first_line, plain
from ...net.credentials import check_address, is_local
from .workflow import SINK, Graph, Workflow

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

log = logging.getLogger(__name__)

CONNECT = 10.0  # seconds at most until a server takes a connection
ANSWER = 60.0  # seconds for a short answer: a server that loads a model is slow with all of them
LOOK = 5.0  # seconds without a word, before the queue is asked whether a run is still there
MOST_BYTES = 256 * 2**20  # of an answer or a message: a large picture as PNG
SHOWN = 200  # characters of a server's own words in a message
SOCKET_SINK, FILE_SINK = "SaveImageWebsocket", "PreviewImage"
PREVIEW, PREVIEW_WITH_METADATA = 1, 4  # kinds of binary messages
# Other kinds are custom nodes' own, or for the editor.
HEARD = (
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
    """The server is down, silent, or answers what no ComfyUI does."""


class NoPicture(Exception):
    """A run ended without a picture that can be read, or somebody stopped it on the server."""


@dataclass
class QueuedGraph:
    """A queued graph: what came of it so far."""

    progress: Callable[[str, float], None]
    seen: float = field(default_factory=time.monotonic)  # when the server last said something about it
    frames: list[bytes] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.done.set()


class ComfyUIServer:
    """A client of the server at `url`, within one event loop. `alive` while its websocket is open, `asked`
    from the first time that it was there or not.

    `silence`: seconds without a word about a run, its wait in the queue left out, before the server counts
    as lost. `client_id` marks all that this client queues.
    """

    def __init__(self, url: str, client_id: str, silence: float):
        import httpx

        self.url, self.client_id, self.silence = url, client_id, silence
        self.alive, self.asked, self.why = False, False, "it has not answered yet"
        self.version, self.sink = "", FILE_SINK
        self.runs: dict[str, QueuedGraph] = {}
        self._remaining = 0  # runs in its queue, others' included
        self._node: tuple[str, str] | None = None  # (prompt_id, node) that it executes
        self._socket: ClientConnection | None = None
        self._why: ServerLost | None = None  # why the connection was cut
        self.dropped = False  # whether it was alive and lost
        address = httpx.URL(url)
        self.local = is_local(address.host)
        self.http = httpx.AsyncClient(
            timeout=httpx.Timeout(ANSWER, connect=CONNECT),
            trust_env=not self.local,  # a proxy of the environment cannot reach this machine's own servers
            verify=not self.local or address.scheme == "https",  # reading certificates for nothing takes .1 s
        )

    @property
    def load(self) -> int:
        """How many runs are before a new one."""
        return max(self._remaining, len(self.runs))

    async def close(self) -> None:
        await self.http.aclose()

    async def probe(self) -> str:
        """What decides a picture beside the graph: versions and kind of device."""
        status, body = await self._send("GET", "system_stats")
        try:
            found = json.loads(body)
            system, devices = found["system"], found["devices"]
            kinds = sorted({str(device["type"]) for device in devices})
            torch = system.get("pytorch_version", "?")
            self.version = f"ComfyUI {system['comfyui_version']}, torch {torch}, {'+'.join(kinds)}"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerLost(f"it is no ComfyUI ({status}: {quoted(body)})") from error
        return self.version

    async def serve(self, changed: Callable[[], None]) -> None:
        """Connect, and take in what the server says until the connection breaks: ends in ServerLost."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            await self.probe()
            status, body = await self._send("GET", f"object_info/{SOCKET_SINK}")
            self.sink = SOCKET_SINK if status == 200 and SOCKET_SINK in _parsed(body) else FILE_SINK
            address = f"ws{self.url.removeprefix('http')}/ws?clientId={self.client_id}"
            proxy = None if self.local else True
            async with connect(
                address,
                max_size=MOST_BYTES,
                open_timeout=CONNECT,
                ping_timeout=ANSWER,
                close_timeout=1,
                proxy=proxy,
            ) as socket:
                await socket.send(
                    json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
                )
                self._remaining = await self.abandon()  # what it still has of a connection that broke
                self.alive, self.asked, self._node, self._why = True, True, None, None
                self._socket = socket
                if self.dropped:
                    log.warning("%s answers again", self.url)
                changed()
                async for message in socket:
                    self._hear(message)
                    changed()
            raise self._why or ServerLost("it closed the connection")
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            raise self._why or ServerLost(f"the websocket broke: {first_line(error)}") from error

    def cut(self, why: ServerLost) -> None:
        """Break the connection, so that `serve` ends with this reason."""
        if self.alive and self._why is None:
            self._why = why
            assert self._socket is not None
            self._socket.transport.abort()

    def drop(self, why: ServerLost) -> None:
        """Give up all its runs."""
        self.dropped = self.dropped or self.alive
        self.alive, self.asked, self.why = False, True, str(why)
        for run in self.runs.values():
            run.fail(why)
        self.runs.clear()

    async def draw(self, workflow: Workflow, graph: Graph, progress: Callable[[str, float], None]) -> bytes:
        """The picture of a graph, as an encoded file. `progress(node, share)` is told of nodes at work.

        Raises ServerLost, NoPicture, Unsupported where the server refuses the graph, and RenderFailed where a
        node fails.
        """
        run = QueuedGraph(progress)
        name = str(uuid.uuid4())
        self.runs[name] = run
        try:
            status, body = await self._send(
                "POST",
                "prompt",
                {
                    "prompt": graph,
                    "client_id": self.client_id,
                    "prompt_id": name,
                    "extra_data": {"preview_method": "none"},
                },
            )
            answer = _parsed(body)
            if status == 400 and "error" in answer:
                raise Unsupported(f"{self.url} cannot run the workflow: {_refusal(workflow, answer)}")
            if status != 200 or not isinstance(answer.get("prompt_id"), str):
                raise ServerLost(f"it does not take the workflow ({status}: {quoted(body)})")
            if answer["prompt_id"] != name:
                raise Unsupported(f"{self.url} runs an old ComfyUI, which names runs by itself; update it")
            await self._finished(name, run)
            if isinstance(run.error, _NodeError):
                raise RenderFailed(f"{self.url}: {workflow.title(run.error.node)} failed: {run.error}")
            if run.error is not None:
                raise run.error
            pictures = run.frames or [await self._view(file) for file in run.files]
            if not pictures:
                raise NoPicture("the run ended without a picture")
            if len(pictures) > 1:
                raise Unsupported(
                    f"the workflow gives {len(pictures)} pictures for one seed; set its batch size to 1"
                )
            return pictures[0]
        finally:
            self.runs.pop(name, None)

    async def _finished(self, name: str, run: QueuedGraph) -> None:
        missed = False
        while not run.done.is_set():
            await heard_of(run.done, min(LOOK, self.silence))
            if run.done.is_set() or time.monotonic() - run.seen < min(LOOK, self.silence):
                continue
            waiting, running = await self._queue()
            if any(entry[1] == name for entry in waiting):
                run.seen, missed = time.monotonic(), False  # its turn has not come
            elif any(entry[1] == name for entry in running):
                missed = False
                if time.monotonic() - run.seen > self.silence:
                    raise ServerLost(f"it said nothing about a picture for {self.silence:g} s")
            elif missed:  # twice: the last message may have been on its way
                raise NoPicture("it is no longer in the server's queue; somebody may have cleared it")
            else:
                missed = True

    async def abandon(self) -> int:
        """Take back what this client has queued, and stop what runs of it; others' work, so much, goes on."""
        queue, ours = await self._queue(), self.client_id
        waiting, running = (
            [entry[1] for entry in entries if entry[3].get("client_id") == ours] for entries in queue
        )
        if waiting:
            await self._send("POST", "queue", {"delete": waiting})
        for name in running:
            await self._send("POST", "interrupt", {"prompt_id": name})
        return sum(map(len, queue)) - len(waiting) - len(running)

    async def _queue(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """What waits and what runs: entries [number, prompt_id, graph, extra_data, …]."""
        status, body = await self._send("GET", "queue")
        try:
            found = json.loads(body)
            waiting, running = found["queue_pending"], found["queue_running"]
            if all(isinstance(entry[1], str) and isinstance(entry[3], dict) for entry in waiting + running):
                return waiting, running
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            pass
        raise ServerLost(f"it does not show its queue ({status}: {quoted(body)})")

    async def _view(self, file: dict[str, Any]) -> bytes:
        wanted = {key: str(file.get(key, "")) for key in ("filename", "subfolder", "type")}
        status, body = await self._send("GET", "view", query=wanted)
        if status != 200:
            raise NoPicture(f"{wanted['filename']!r} cannot be fetched ({status}: {quoted(body)})")
        return body

    async def _send(
        self, method: str, path: str, content: Any = None, query: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer whose size and time are bounded."""
        import httpx

        async def answer() -> tuple[int, bytes]:
            body = bytearray()
            async with self.http.stream(method, f"{self.url}/{path}", json=content, params=query) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise ServerLost(f"its answer to {path} is larger than {MOST_BYTES:,} bytes")
            return response.status_code, bytes(body)

        try:
            return await asyncio.wait_for(answer(), ANSWER)
        except (httpx.ConnectTimeout, httpx.ConnectError) as error:
            raise ServerLost(f"it cannot be reached: {first_line(error)}") from error
        except (httpx.TimeoutException, asyncio.TimeoutError) as error:
            raise ServerLost(f"it did not answer {path} within {ANSWER:g} s") from error
        except httpx.HTTPError as error:
            raise ServerLost(f"it broke off: {first_line(error)}") from error

    def _hear(self, message: str | bytes) -> None:
        """One message of the websocket."""
        if isinstance(message, bytes):
            return self._see(message)
        try:
            found = json.loads(message)
            kind, data = found["type"], found.get("data")
            if kind not in HEARD:
                return
            if kind == "status":
                self._remaining = int(data["status"]["exec_info"]["queue_remaining"])
                return
            run, node = self.runs.get(str(data.get("prompt_id"))), data.get("node")
            if kind == "executing":
                self._node = (str(data.get("prompt_id")), str(node)) if node is not None else None
            if run is None:  # of a run that is over, or the browser's business
                return
            run.seen = time.monotonic()
            if kind == "progress" and data["max"]:
                run.progress(str(node), min(1.0, max(0.0, data["value"] / data["max"])))
            elif kind == "executed" and node == SINK:
                output = data.get("output") or {}
                run.files = [file for file in output.get("images") or () if isinstance(file, dict)]
            elif kind == "execution_error":
                run.fail(_NodeError(str(data.get("node_id")), _fault(data)))
            elif kind == "execution_interrupted":
                run.fail(NoPicture("it was stopped on the server"))
            elif kind == "execution_success" or (kind == "executing" and node is None):
                run.done.set()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ServerLost(f"it says what no ComfyUI does: {quoted(message)}") from error

    def _see(self, message: bytes) -> None:
        """A binary message: kind, then for a preview of a node the format or its metadata, then a picture."""
        if len(message) < 8:
            return
        try:
            kind, second = struct.unpack_from(">II", message)
            if kind == PREVIEW_WITH_METADATA:
                about = json.loads(message[8 : 8 + second])
                source, picture = (str(about["prompt_id"]), str(about["node_id"])), message[8 + second :]
            elif kind == PREVIEW:
                source, picture = self._node, message[8:]
            else:
                return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerLost(f"it sends a picture that none is: {quoted(message)}") from error
        run = self.runs.get(source[0]) if source else None
        if run is not None and source is not None:
            run.seen = time.monotonic()
            if source[1] == SINK:
                run.frames.append(picture)


class _NodeError(Exception):
    """An exception of a node; names the node."""

    def __init__(self, node: str, why: str):
        super().__init__(why)
        self.node = node


async def heard_of(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()


def check_server(url: str) -> str:
    """A server's address. Raises BadInput where it is none."""
    return check_address(url, "http://127.0.0.1:8188")


def quoted(said: str | bytes) -> str:
    """A server's words on one line, short."""
    text = said[: 8 * SHOWN].decode("utf-8", "replace") if isinstance(said, bytes) else said[: 8 * SHOWN]
    return repr(plain(text, SHOWN))


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _fault(data: dict[str, Any]) -> str:
    kind = str(data.get("exception_type", "")).rpartition(".")[2]
    said = str(data.get("exception_message", "")).strip() or "it gave no reason"
    return f"{kind + ': ' if kind else ''}{quoted(said)}"


def _refusal(workflow: Workflow, answer: dict[str, Any]) -> str:
    """Why a server does not take a graph, in one line: the first fault of each node, three at most."""
    faults, errors = [], answer.get("node_errors")
    for node, found in errors.items() if isinstance(errors, dict) else ():
        for error in found.get("errors", ())[:1] if isinstance(found, dict) else ():
            said = " ".join(str(error.get(key, "")).strip() for key in ("message", "details"))
            faults.append(f"{workflow.title(str(node))}: {quoted(said)}")
    if faults:
        return "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more nodes" if len(faults) > 3 else "")
    error = answer["error"]
    return quoted(str(error.get("message", error)) if isinstance(error, dict) else str(error))
