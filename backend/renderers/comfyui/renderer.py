"""A saved ComfyUI workflow on one or more ComfyUI servers as a renderer.

A job goes to the server with the shortest queue; a second one is queued behind it, so that no server is idle
between two jobs. A lost server is dropped, its jobs are drawn elsewhere, and it is tried again until it is
back. An error of a node or of the graph is final once every connected server has reported it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import BadInput, RenderFailed, RepriseError, UnknownName, Unsupported, first_line
from ...core.types import Job, RendererCapabilities, RenderResult
from ...net.background import run_in_thread
from ...storage.cache import Cache, picture_key
from ...storage.images import check_pixels
from ..diffusers.renderer import check_jobs
from .client import ComfyUIClient, NoPicture, ServerLost, check_server, wait_for_event
from .sockets import NamedSockets
from .workflow import Workflow

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.interfaces import Watcher

log = logging.getLogger(__name__)

NAME_FORM = "comfyui:WORKFLOW.json@URL, for example comfyui:flow.json@http://127.0.0.1:8188"
NAME_OPTIONS = ("prompt", "seed", "steps", "output")
JOBS_PER_SERVER = 2  # of ours in a server's queue, the running one included
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds before a lost server is tried again; doubled each time
CONNECT_ALL_SECONDS = 2.0  # that all servers have to connect before jobs are assigned
CANCEL_SECONDS = 5.0  # to take back what is queued
PROBE_SECONDS = 20.0  # that a server has to show that it is there


def parse_name(text: str) -> tuple[Path, list[str], NamedSockets]:
    """(file, servers, what is named) of "WORKFLOW.json[,prompt=6.text][,seed=3.seed][,…]@URL[,URL…]".

    Raises BadInput where it is none, UnknownName for an option that is none.
    """
    words, at, rest = text.rpartition("@http")
    if not at:
        raise BadInput(f"expected {NAME_FORM}, got comfyui:{text[:80]}")
    file, *options = re.split(r",(?=\w+=)", words)
    if not file.strip():
        raise BadInput(f"expected {NAME_FORM}; the workflow's file is missing")
    named: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in NAME_OPTIONS:
            raise UnknownName("option of comfyui:", key, NAME_OPTIONS)
        if key in named or not value.strip():
            raise BadInput(f"{key}= is given once, as NODE.INPUT, several with +; got {option[:80]!r}")
        named[key] = value.strip()
    return Path(file), [check_server(url) for url in f"http{rest}".split(",")], NamedSockets(**named)


class ComfyUIRenderer:
    """Draws by queueing `workflow` (see `workflow.load_workflow`) on the ComfyUI servers at `urls`.

    `retries`: how often a picture is tried again after its server was lost or gave none. `silence`: seconds
    without a word about a picture, its wait in the queue left out, before its server counts as lost; a large
    model takes its time to load. `patience`: seconds to wait for any server when all are lost.

    There are no previews, so nothing can be pruned. The fingerprint holds the workflow without prompt and
    seed, and the versions of the first server that answers; not the contents of the model files that the
    workflow names.
    """

    name = "comfyui"
    capabilities = RendererCapabilities(
        previews=False, elsewhere=True, keeps_pictures=True, settings=frozenset({"steps"})
    )
    model = None

    def __init__(
        self,
        workflow: Workflow,
        urls: Sequence[str],
        *,
        cache: Cache | None = None,
        retries: int = 2,
        silence: float = 600.0,
        patience: float = 60.0,
    ):
        if not urls or retries < 0 or silence <= 0 or patience < 0:
            raise BadInput(
                f"expected a server, retries >= 0, silence > 0 and patience >= 0; got {len(urls)} "
                f"servers, {retries}, {silence}, {patience}"
            )
        self.urls = list(dict.fromkeys(check_server(url) for url in urls))
        self.workflow, self.steps, self.cache = workflow, workflow.steps, cache
        self.retries, self.silence, self.patience = retries, silence, patience
        self.client_id = uuid.uuid4().hex
        self.version = run_in_thread(self._probe())
        self.fingerprint = Cache.key("comfyui", workflow.content, self.version)

    def render(
        self,
        jobs: Sequence[Job],
        watcher: Watcher | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RenderResult:
        """Draw all jobs, each by a run of its own; see `interfaces.Renderer`. The same job is drawn once.

        `progress` counts the samplers' steps of all jobs. When it raises, or on Ctrl-C, what is queued is
        taken back and what runs is interrupted. Raises Unsupported for a watcher and where a server refuses
        the workflow, RenderFailed where a node fails or no server is left.
        """
        if watcher is not None:
            raise Unsupported(
                "pruning needs previews, which a workflow on a ComfyUI server does not give; "
                "take --prune none, or a PARM Best-of-N node in the workflow"
            )
        check_jobs(jobs, None, self.steps)
        if any(job.init for job in jobs):
            raise Unsupported(
                "a workflow on a ComfyUI server starts from what it says itself, not from "
                "another picture; draw again, or put a Reflection Loop into it"
            )
        import torch  # noqa: F401  seconds when it is the first time: not while servers talk

        images: dict[Job, Tensor] = {}
        if self.cache is not None:
            for job in dict.fromkeys(jobs):
                entry = self.cache.get_image(self._key(job))
                if entry is not None:
                    images[job] = entry[0]
        todo = [job for job in dict.fromkeys(jobs) if job not in images]
        if todo:
            batch, whole = _Batch(self, todo), len(todo) * self.steps
            tick = progress and (lambda: progress(int(batch.share * whole), whole))
            drawn = run_in_thread(batch.run(), tick, patience=CANCEL_SECONDS + 2)
            images.update(zip(todo, drawn, strict=True))
        rows = self.workflow.rows
        return RenderResult(
            [images[job] for job in jobs], [None] * len(jobs), len(todo) * rows, len(jobs) * rows
        )

    def put_in_cache(self, job: Job, image: Tensor, version: str) -> None:
        """Unless a server of another version drew it than the fingerprint says."""
        if self.cache is not None and version == self.version:
            self.cache.put_image(self._key(job), image)

    def _key(self, job: Job) -> str:
        return picture_key(self.fingerprint, job)

    async def _probe(self) -> str:
        """The version of the first server that answers. Raises RenderFailed where none does."""
        servers = [ComfyUIClient(url, self.client_id, self.silence) for url in self.urls]
        try:
            probes = (asyncio.wait_for(server.probe(), PROBE_SECONDS) for server in servers)
            answers = await asyncio.gather(*probes, return_exceptions=True)
        finally:
            for server in servers:
                await server.close()
        versions = []
        for server, answer in zip(servers, answers, strict=True):
            if isinstance(answer, str):
                versions.append(answer)
            elif isinstance(answer, (ServerLost, asyncio.TimeoutError)):
                server.reason = str(answer) or f"no answer within {PROBE_SECONDS:g} s"
            else:
                raise answer
        if not versions:
            raise no_server(servers)
        if len(set(versions)) > 1:
            log.warning(
                "the ComfyUI servers differ (%s), so their pictures may, too",
                "; ".join(sorted(set(versions))),
            )
        for server in servers:
            if not server.version:
                log.warning("%s is left out until it answers: %s", server.url, server.reason)
        return versions[0]


class _Batch:
    """The jobs of one `render`: which are waiting, where the others are drawn, and the pictures."""

    def __init__(self, renderer: ComfyUIRenderer, jobs: Sequence[Job]):
        self.renderer, self.workflow, self.jobs = renderer, renderer.workflow, list(jobs)
        self.images: list[Tensor | None] = [None] * len(jobs)
        self.waiting = deque(range(len(jobs)))
        self.tries = [0] * len(jobs)
        self.refused: list[dict[ComfyUIClient, RepriseError]] = [{} for _ in jobs]  # by whom, and why
        self.shares = [0.0] * len(jobs)  # how much of each is drawn
        self.servers: list[ComfyUIClient] = []
        self.failed: Exception | None = None

    @property
    def share(self) -> float:
        return sum(self.shares) / len(self.shares)

    async def run(self) -> list[Tensor]:
        """The pictures of all jobs; the first failure that is final ends the others."""
        renderer = self.renderer
        self.changed = asyncio.Event()
        self.servers = [ComfyUIClient(url, renderer.client_id, renderer.silence) for url in renderer.urls]
        tasks = {asyncio.create_task(self.keep_connected(server)) for server in self.servers}
        started = last_connected = time.monotonic()
        try:
            while self.failed is None and any(image is None for image in self.images):
                # Not before all were tried, or the first to answer would get too many jobs.
                late = time.monotonic() > started + CONNECT_ALL_SECONDS
                ready = late or all(server.tried for server in self.servers)
                for server, number in self.assign() if ready else ():
                    task = asyncio.create_task(self.draw(server, number))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                self.changed.clear()
                await wait_for_event(self.changed, 1.0)
                if any(server.connected for server in self.servers):
                    last_connected = time.monotonic()
                elif time.monotonic() - last_connected > renderer.patience:
                    raise no_server(self.servers)
            if self.failed is not None:
                raise self.failed
            return [image for image in self.images if image is not None]
        finally:
            await self.clean_up(list(tasks))

    def assign(self) -> list[tuple[ComfyUIClient, int]]:
        """Waiting jobs for the servers with the shortest queues, as many as may be ahead there."""
        connected = [server for server in self.servers if server.connected]
        load = {server: server.load for server in connected}
        ours = {server: len(server.runs) for server in connected}
        assigned: list[tuple[ComfyUIClient, int]] = []
        for number in list(self.waiting) if connected else ():
            able = [server for server in connected if server not in self.refused[number]]
            if not able:
                self.fail(next(iter(self.refused[number].values())))
                break
            server = min(able, key=lambda server: load[server])
            # The last ones are not queued behind others: the first server that is free takes them.
            most = JOBS_PER_SERVER if len(self.waiting) - len(assigned) > len(connected) else 1
            if ours[server] < most:
                load[server], ours[server] = load[server] + 1, ours[server] + 1
                assigned.append((server, number))
            elif min(ours.values()) >= most:
                break
        for _, number in assigned:
            self.waiting.remove(number)
        return assigned

    async def draw(self, server: ComfyUIClient, number: int) -> None:
        """One job on one server."""
        job, samplers = self.jobs[number], self.workflow.samplers

        def progress(node: str, share: float) -> None:
            if node in samplers:
                self.shares[number] = max(self.shares[number], (samplers.index(node) + share) / len(samplers))

        try:
            graph = self.workflow.job(job.prompt, job.seed, server.sink)
            image = _decoded(await server.draw(self.workflow, graph, progress))
            self.images[number], self.shares[number] = image, 1.0
            self.renderer.put_in_cache(job, image, server.version)
        except (ServerLost, NoPicture) as error:
            if isinstance(error, ServerLost):
                server.disconnect(error)
            self.tries[number], self.shares[number] = self.tries[number] + 1, 0.0
            self.waiting.appendleft(number)
            if self.tries[number] > self.renderer.retries:
                times = f"the picture of seed {job.seed} failed {self.tries[number]} times"
                self.fail(RenderFailed(f"{times}, at last on {server.url}: {error}; its log may say why"))
        except RepriseError as error:
            self.refused[number][server] = error
            self.waiting.appendleft(number)
        except Exception as error:
            self.fail(error)
        finally:
            self.changed.set()

    async def keep_connected(self, server: ComfyUIClient) -> None:
        """The server's connection, made anew whenever it breaks."""
        pause = FIRST_PAUSE
        while True:
            try:
                await server.serve(self.changed.set)
            except ServerLost as reason:
                if server.connected:
                    log.warning("%s is dropped: %s", server.url, reason)
                    pause = FIRST_PAUSE
                server.give_up_runs(reason)
                self.changed.set()
            except Exception as error:
                self.fail(error)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def fail(self, error: Exception) -> None:
        """End the batch; the first error counts."""
        self.failed = self.failed or error
        self.changed.set()

    async def clean_up(self, tasks: list[asyncio.Task]) -> None:
        """Take back what is not finished, also from a lost server, and close all connections."""
        while tasks:  # wait_for of Python 3.10 and 3.11 may swallow a cancellation
            for task in tasks:
                task.cancel()
            tasks = list((await asyncio.wait(tasks, timeout=0.5))[1])
        unfinished = any(image is None for image in self.images)
        cancels = [
            one.cancel_runs() for one in self.servers if one.was_lost or (unfinished and one.connected)
        ]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*cancels, return_exceptions=True), CANCEL_SECONDS)
        for server in self.servers:
            await server.close()


def no_server(servers: Sequence[ComfyUIClient]) -> RenderFailed:
    """None of the servers answers: each with its reason."""
    reasons = "; ".join(f"{server.url}: {server.reason}" for server in servers)
    return RenderFailed(f"no ComfyUI server answers ({reasons}); start one, or correct the address")


def _decoded(file: bytes) -> Tensor:
    """An encoded picture as (H, W, 3) in 0..1."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(BytesIO(file)) as picture:
            check_pixels(picture)
            pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise NoPicture(f"the picture cannot be read: {first_line(error)}") from error
    return torch.from_numpy(pixels).float() / 255
