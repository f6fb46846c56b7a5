"""Run after run of a set on its servers: fetched, written, judged and shown as they come.

The servers are asked in a thread of their own. The caller's thread writes files, judges and rewrites
meanwhile, ten times a second; where it falls behind, nothing more is queued for a while.
"""

from __future__ import annotations

import asyncio
import shlex
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, Interrupted, RenderFailed, RepriseError, first_line
from ..net.background import run_in_thread
from ..renderers.comfyui.client import ComfyUIClient, NoPicture, QueuedGraph
from ..renderers.comfyui.graph import title
from ..renderers.comfyui.pool import CANCEL_SECONDS, ServerPool
from ..reports.gallery import Gallery
from ..storage.checksums import file_checksum
from ..storage.files import write_whole
from .inputs import Picture
from .journal import PICTURES, Journal, Row
from .judging import Judging, Rewriting
from .names import ending_of, file_name, saved_files
from .plan import Plan, Run
from .tally import BatchTally

MOST_RESULTS = 32  # runs whose files wait in memory to be written
REWRITE_TOGETHER = 8  # prompts
LOOK_AHEAD = 1_000  # runs, for prompts to rewrite together
FAILED_ALIKE = 8  # runs that fail for one reason, with none that succeeds, before the command ends
JUDGE_SECONDS = 0.5  # of judging before the next look at what has come
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SINK_CLASS = "SaveImageWebsocket"
FOLDER_ON_SERVER = "reprise"  # in a server's input folder


@dataclass
class Drawn:
    """What has come of a run: files as (node, name on the server, content)."""

    number: int
    server: str
    prompt_id: str
    seconds: float
    files: list[tuple[str, str, bytes]]


@dataclass
class Failed:
    number: int
    error: Exception


@dataclass
class BatchDrawing:
    """Draws what is not finished of `runs` into the folder of `journal`."""

    plan: Plan
    runs: Sequence[Run]
    journal: Journal
    urls: Sequence[str]
    gallery: Gallery
    tally: BatchTally
    note: Callable[[str], None]
    judging: Judging | None = None
    rewriting: Rewriting | None = None
    retries: int = 2
    silence: float = 600.0
    patience: float = 600.0
    progress: Callable[[], None] = lambda: None
    _to_judge: list[tuple[Run, Row, Row]] = field(default_factory=list)  # run, its row, its file
    _failures: dict[str, int] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.journal.out

    def run(self) -> None:
        """Draw and judge all. Whatever happens, what is finished is in the journal and on the page.

        Raises RenderFailed where runs failed or no server is left, Unsupported where servers refuse the
        workflow, and Interrupted when it is stopped.
        """
        self._results: deque[Drawn | Failed] = deque()
        self._uploaded: dict[tuple[str, str], str] = {}  # (server, SHA-256) -> its name there
        self._uploading: dict[tuple[str, str], asyncio.Lock] = {}
        self._last: dict[str, float] = {}  # when a server has finished its last run
        self._page(self.gallery.begin)
        self._unfed = self._keep_finished()
        self._sinks = frozenset(
            name for name, node in self.plan.graph.items() if node["class_type"] == SINK_CLASS
        )
        self.pool = ServerPool(
            self.urls,
            self.journal.client_id,
            self._draw,
            lambda number, error: self._results.append(Failed(number, error)),
            lambda number: f"the run of {(self.runs[number].prompt or 'seed')[:60]!r}",
            self._alike,
            retries=self.retries,
            silence=self.silence,
            patience=self.patience,
        )
        self.pool.holds_back = lambda: len(self._results) >= MOST_RESULTS
        try:
            try:
                if self._unfed:
                    self._adopt()
                    self._feed()
                    run_in_thread(self.pool.run(), self._tick, patience=CANCEL_SECONDS + 2)
                while self._to_judge:
                    self._judge(JUDGE_SECONDS)
                    self._show()
            finally:
                self._take_results()
        except (KeyboardInterrupt, Interrupted) as stop:
            raise Interrupted(
                f"stopped; {self.tally.kept + self.tally.drawn:,} of {self.tally.total:,} runs are finished "
                f"in {self.out}; the same command with --out {shlex.quote(str(self.out))} goes on with the "
                "rest"
            ) from stop
        finally:
            self.journal.compact()
            self._page(self.gallery.close, self.tally.summary())
        if self._failures:
            raise RenderFailed(
                f"{self.tally.failed:,} of {self.tally.total:,} runs failed, the rest is in {self.out}; the "
                f"first: {next(iter(self._failures))}; the same command tries them again"
            )

    def _keep_finished(self) -> list[int]:
        """Show what is there; the numbers of the runs that are not."""
        unfinished, damaged = [], 0
        for number, run in enumerate(self.runs):
            if self.journal.is_whole(run.name):
                self.tally.kept += 1
                self._shown(run, self.journal.rows[run.name])
            else:
                damaged += run.name in self.journal.rows
                unfinished.append(number)
        planned = {run.name for run in self.runs}
        for name, row in self.journal.rows.items():
            if name not in planned:  # of an earlier call with other prompts or settings
                self._page(self.gallery.add, row)
        if damaged:
            self.note(f"drawn again: the files of {damaged} runs in {self.out} are gone or damaged")
        if self.tally.kept:
            self.note(f"kept: {self.tally.kept:,} finished runs")
        return unfinished

    def _adopt(self) -> None:
        """Look first for what an earlier process has left on a server."""
        servers = {server.url: server for server in self.pool.servers}
        left = {}
        for number in self._unfed:
            at = self.journal.queued.get(self.runs[number].name)
            if at is not None and at[0] in servers:
                left[number] = at[0]
                servers[at[0]].kept.add(at[1])
        self.pool.bound.update(left)
        self._unfed.sort(key=lambda number: number not in left)

    # In the caller's thread

    def _tick(self) -> None:
        self._take_results()
        self._feed()
        self._judge(JUDGE_SECONDS)
        self._show()

    def _show(self) -> None:
        self.progress()
        self._page(self.gallery.update, self.tally.progress())

    def _take_results(self) -> None:
        while self._results:
            result = self._results[
                0
            ]  # it stays until it is saved: Ctrl-C may come between its files and its line
            if isinstance(result, Failed):
                self._results.popleft()
                self._fail(result)
                continue
            row = self._save(result)
            self._results.popleft()
            self.tally.add(len(row["files"]))
            self._shown(self.runs[result.number], row)
        self.pool.wake()

    def _feed(self) -> None:
        """Hand runs to the pool: all at once, or as fast as they are rewritten."""
        if not self._unfed and not self.pool.more:
            return
        if self.rewriting is None:
            now, self._unfed = self._unfed, []
            self.pool.add(now)
            return
        enough = 4 * len(self.urls) + 4
        while self._unfed and len(self.pool.waiting) < enough:
            ahead = [self.runs[number].prompt or "" for number in self._unfed[:LOOK_AHEAD]]
            if not self.rewriting.known(ahead[0]):
                unknown = (prompt for prompt in dict.fromkeys(ahead) if not self.rewriting.known(prompt))
                self.rewriting.write(list(islice(unknown, REWRITE_TOGETHER)))
            count = next(
                (i for i, prompt in enumerate(ahead) if i >= enough or not self.rewriting.known(prompt)),
                len(ahead),
            )
            now, self._unfed = self._unfed[:count], self._unfed[count:]
            self.pool.add(now, more=bool(self._unfed))
            if self.pool.waiting:
                return
        if not self._unfed:
            self.pool.add([], more=False)

    def _save(self, drawn: Drawn) -> Row:
        """Write a run's files, then its line, which is returned."""
        run, files = self.runs[drawn.number], []
        for i, (node, name, content) in enumerate(drawn.files):
            made = file_name(run, i, len(drawn.files) > 1, ending_of(name))
            path = self.out / PICTURES / made
            write_whole(path, content)
            files.append({"name": made, "node": node, "xxh128": file_checksum(path)})
        row: Row = {"run": run.name, "group": run.group, "prompt": run.prompt}
        if run.template is not None:
            row["template"] = run.template
        if run.variant is not None and self.rewriting is not None:
            rewrite = self.rewriting.of(run.prompt or "", run.variant)
            row["text"] = rewrite["prompt"]
            row |= {key: rewrite[key] for key in ("reason", "fallback") if rewrite.get(key)}
        row |= {
            "seed": run.seed,
            "settings": run.settings,
            "labels": run.labels,
            "set": {
                str(socket): str(value.path) if isinstance(value, Picture) else value
                for socket, value in run.values.items()
            },
            "server": drawn.server,
            "prompt_id": drawn.prompt_id,
            "seconds": round(drawn.seconds, 3),
            "files": files,
        }
        self.journal.finish(row)
        return row

    def _shown(self, run: Run, row: Row) -> None:
        """A finished run: to be judged, and on the page."""
        if self.judging is not None:
            for file in row["files"]:
                if ending_of(file["name"]) in IMAGES and not self.journal.judged(file, self.judging.mark):
                    file.pop("score", None)
                    file.pop("scores", None)
                    self._to_judge.append((run, row, file))
        self._page(self.gallery.add, row)

    def _judge(self, seconds: float) -> None:
        """Judge what waits for it, for about so long."""
        end = time.monotonic() + seconds
        while self._to_judge and self.judging is not None and time.monotonic() < end:
            run, row, file = self._to_judge.pop(0)
            try:
                scores, score = self.judging.score(self.out / PICTURES / file["name"], run.prompt or "")
            except BadInput as error:
                self.note(f"not judged: {error}")
                continue
            self.journal.score(file, self.judging.mark, scores, score)
            self.tally.judged += 1
            self._page(self.gallery.change, row)

    def _fail(self, failed: Failed) -> None:
        """A run that no server could draw: said once, and passed over, unless all fail."""
        reason = str(failed.error)
        self.tally.failed += 1
        if reason not in self._failures:
            self.note(f"passed over: {reason}")
        self._failures[reason] = self._failures.get(reason, 0) + 1
        if not self.tally.drawn and self._failures[reason] >= min(FAILED_ALIKE, self.tally.total):
            raise failed.error

    def _page(self, write: Callable[..., None], *about: Any) -> None:
        """The page is made of the journal: where it cannot be written, nothing is lost."""
        try:
            write(*about)
        except RepriseError as error:
            self.note(f"no page: {error}")

    # In the servers' thread

    def _alike(self, number: int) -> Any:
        """Runs with the same settings: a server that lacks a model refuses them all."""
        return tuple(
            (socket, value.sha256 if isinstance(value, Picture) else value)
            for socket, value in self.runs[number].values.items()
        )

    async def _draw(self, server: ComfyUIClient, number: int) -> None:
        run, started = self.runs[number], time.monotonic()
        left = self.journal.queued.get(run.name)
        result, name = QueuedGraph(sinks=self._sinks), ""
        if left is not None and left[0] == server.url:
            name = left[1]
        if not name or not await server.adopt(name, result, self._title):
            text = run.prompt
            if self.rewriting is not None and run.variant is not None:
                text = self.rewriting.of(run.prompt or "", run.variant)["prompt"]
            uploaded = {
                value: await self._upload(server, value)
                for value in run.values.values()
                if isinstance(value, Picture)
            }
            graph = self.plan.job(run, text, uploaded)
            result, name = QueuedGraph(sinks=self._sinks), str(uuid.uuid4())
            try:
                self.journal.queue(run.name, server.url, name)
            except RepriseError as error:
                self.pool.stop(error)
                return
            await server.run(graph, name, result, self._title)
            if not result.outputs and not result.frames:
                result.outputs = await server.history(name)
        files = [(node, "frame.png", frame) for node, frame in result.frames]
        for node, file in saved_files(result.outputs, self.plan.inputs.names.output):
            files.append((node, file["filename"], await server.fetch_file(file)))
        if not files:
            raise NoPicture("the run saved nothing; add a Save Image node to the workflow")
        for _, filename, content in files:
            _check_picture(filename, content)
        now = time.monotonic()
        seconds = now - max(started, self._last.get(server.url, 0.0))
        self._last[server.url] = now
        self._results.append(Drawn(number, server.url, name, seconds, files))

    def _title(self, node: str) -> str:
        return title(node, self.plan.graph[node]) if node in self.plan.graph else f"node {node}"

    async def _upload(self, server: ComfyUIClient, picture: Picture) -> str:
        """The name of a picture on the server, which gets it once."""
        key = server.url, picture.sha256
        async with self._uploading.setdefault(key, asyncio.Lock()):
            if key not in self._uploaded:
                try:
                    content = picture.path.read_bytes()
                except OSError as error:
                    raise BadInput(f"cannot read the picture {picture.path}: {error.strerror}") from error
                self._uploaded[key] = await server.upload(picture.name, content, FOLDER_ON_SERVER)
        return self._uploaded[key]


def _check_picture(name: str, content: bytes) -> None:
    """Raises NoPicture for a PNG, JPEG or WebP that is cut off or damaged."""
    if ending_of(name) not in IMAGES:
        return
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as picture:
            picture.verify()
    except Exception as error:  # Pillow raises many kinds for what is no picture
        raise NoPicture(f"the picture cannot be read: {first_line(error)}") from error
