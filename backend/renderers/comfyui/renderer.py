"""A saved ComfyUI workflow on one or more ComfyUI servers as a renderer.

`pool.py` shares the jobs among the servers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import BadInput, UnknownName, Unsupported, first_line
from ...core.types import Job, RendererCapabilities, RenderResult
from ...net.background import run_in_thread
from ...storage.cache import Cache, picture_key
from ...storage.images import decode_picture
from ..diffusers.renderer import check_jobs
from .client import ComfyUIClient, NoPicture, ServerLost, check_server
from .pool import CANCEL_SECONDS, ServerPool, probe_all
from .sockets import NamedSockets
from .workflow import Workflow

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.interfaces import Watcher

NAME_FORM = "comfyui:WORKFLOW.json@URL, for example comfyui:flow.json@http://127.0.0.1:8188"
NAME_OPTIONS = ("prompt", "seed", "steps", "output")


def parse_name(text: str) -> tuple[Path, list[str], NamedSockets]:
    """(file, servers, what is named) of "WORKFLOW.json[,prompt=6.text][,seed=3.seed][,…]@URL[,URL…]".

    Raises BadInput where it is none, UnknownName for an option that is none.
    """
    words, at, rest = text.rpartition("@http")
    if not at:
        raise BadInput(f"expected {NAME_FORM}, got comfyui:{text[:80]}")
    file, names = parse_file(words, NAME_FORM)
    return file, [check_server(url) for url in f"http{rest}".split(",")], names


def parse_file(text: str, form: str) -> tuple[Path, NamedSockets]:
    """(file, what is named) of "WORKFLOW.json[,prompt=6.text][,seed=3.seed][,…]"; `form` is quoted where the
    file is missing. Raises as `parse_name`."""
    file, *options = re.split(r",(?=\w+=)", text)
    if not file.strip():
        raise BadInput(f"expected {form}; the workflow's file is missing")
    named: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in NAME_OPTIONS:
            raise UnknownName("option of comfyui:", key, NAME_OPTIONS)
        if key in named or not value.strip():
            raise BadInput(f"{key}= is given once, as NODE.INPUT, several with +; got {option[:80]!r}")
        named[key] = value.strip()
    return Path(file), NamedSockets(**named)


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
        return (await probe_all([ComfyUIClient(url, self.client_id, self.silence) for url in self.urls]))[0]


class _Batch:
    """The jobs of one `render`, drawn by a pool of servers, and the pictures."""

    def __init__(self, renderer: ComfyUIRenderer, jobs: Sequence[Job]):
        self.renderer, self.workflow, self.jobs = renderer, renderer.workflow, list(jobs)
        self.images: list[Tensor | None] = [None] * len(jobs)
        self.shares = [0.0] * len(jobs)  # how much of each is drawn
        self.pool = ServerPool(
            renderer.urls,
            renderer.client_id,
            self.draw,
            lambda number, error: self.pool.stop(error),  # the first failure that is final ends the others
            lambda number: f"the picture of seed {self.jobs[number].seed}",
            retries=renderer.retries,
            silence=renderer.silence,
            patience=renderer.patience,
        )
        self.pool.add(range(len(jobs)))

    @property
    def share(self) -> float:
        return sum(self.shares) / len(self.shares)

    async def run(self) -> list[Tensor]:
        """The pictures of all jobs."""
        await self.pool.run()
        return [image for image in self.images if image is not None]

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
        except (ServerLost, NoPicture):
            self.shares[number] = 0.0
            raise


def _decoded(file: bytes) -> Tensor:
    """An encoded picture as (H, W, 3) in 0..1, on white where it is transparent."""
    try:
        return decode_picture(BytesIO(file))
    except (ValueError, OSError, MemoryError) as error:
        raise NoPicture(f"the picture cannot be read: it {first_line(error)}") from error
