"""Several ComfyUI servers that share the work.

A job goes to the server with the shortest queue; a second one is queued behind it, so that no server is idle
between two jobs. A fast server so comes back for more, sooner than a slow one. A lost server is dropped, its
jobs are drawn elsewhere, and it is tried again until it is back. An error of a node or of the graph is final
once every connected server has reported it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence

from ...core.errors import RenderFailed, RepriseError, Unsupported
from .client import ComfyUIClient, NoPicture, ServerLost, wait_for_event

log = logging.getLogger(__name__)

JOBS_PER_SERVER = 2  # of ours in a server's queue, the running one included
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds before a lost server is tried again; doubled each time
CONNECT_ALL_SECONDS = 2.0  # that all servers have to connect before jobs are assigned
CANCEL_SECONDS = 5.0  # to take back what is queued
PROBE_SECONDS = 20.0  # that a server has to show that it is there
FIRST_PATIENCE = 20.0  # seconds that all may be away at the start: an address may be wrong


class ServerPool:
    """Jobs, by their numbers, on the ComfyUI servers at `urls`, in one event loop.

    `draw(server, number)` draws a job on a server; it raises as `ComfyUIClient.run`. `failed(number, error)`
    is told of a job that is given up; it may call `stop`. `describe` names a job in messages. `alike(number)`
    is equal for jobs that a server refuses alike, such as those with the same models.

    `retries`: how often a job is tried again after its server was lost or gave nothing. `silence`: see
    `ComfyUIClient`. `patience`: seconds to wait for any server when all are lost; fewer at the start.
    """

    def __init__(
        self,
        urls: Iterable[str],
        client_id: str,
        draw: Callable[[ComfyUIClient, int], Awaitable[None]],
        failed: Callable[[int, Exception], None],
        describe: Callable[[int], str],
        alike: Callable[[int], Hashable] | None = None,
        *,
        retries: int = 2,
        silence: float = 600.0,
        patience: float = 60.0,
    ):
        self.draw, self.failed, self.describe, self.alike = draw, failed, describe, alike
        self.retries, self.patience = retries, patience
        self.servers = [ComfyUIClient(url, client_id, silence) for url in urls]
        self.waiting: deque[int] = deque()
        self.bound: dict[int, str] = {}
        """The url of the server that has a job of an earlier process already."""
        self.more = False
        """Whether jobs may still be added: `run` then waits for them."""
        self.holds_back: Callable[[], bool] = lambda: False
        """Whether to assign nothing for the moment, as long as results are not taken away."""
        self._drawing = 0
        self._tries: dict[int, int] = {}
        self._refused: dict[Hashable, dict[ComfyUIClient, RepriseError]] = {}
        self._refused_alike: dict[Hashable, dict[ComfyUIClient, RepriseError]] = {}
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None

    def add(self, numbers: Iterable[int], more: bool = False) -> None:
        """More jobs; from any thread. `more`: whether others will follow."""
        if self._loop is None:
            self._add(numbers, more)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._add, list(numbers), more)

    def _add(self, numbers: Iterable[int], more: bool) -> None:
        self.waiting.extend(numbers)
        self.more = more
        if self._changed is not None:
            self._changed.set()

    def wake(self) -> None:
        """Look again at what can be assigned; from any thread."""
        if self._loop is not None and self._changed is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._changed.set)

    def stop(self, error: Exception) -> None:
        """End `run` with an error; the first one counts."""
        self._error = self._error or error
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Draw all jobs. Raises the error of `stop`, and RenderFailed where no server is left."""
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        tasks = {asyncio.create_task(self._keep_connected(server)) for server in self.servers}
        started = last_connected = time.monotonic()
        try:
            while self._error is None and (self.waiting or self._drawing or self.more):
                # Not before all were tried, or the first to answer would get too many jobs.
                late = time.monotonic() > started + CONNECT_ALL_SECONDS
                ready = late or all(server.tried for server in self.servers)
                for server, number in self._assign() if ready else ():
                    task = asyncio.create_task(self._one(server, number))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                self._changed.clear()
                if not (self.waiting or self._drawing or self.more):
                    break  # all were given up
                await wait_for_event(self._changed, 1.0)
                if any(server.connected for server in self.servers):
                    last_connected = time.monotonic()
                elif time.monotonic() - last_connected > self._patience():
                    raise no_server(self.servers)
            if self._error is not None:
                raise self._error
        finally:
            await self._clean_up(list(tasks))

    def _patience(self) -> float:
        seen = any(server.was_lost for server in self.servers)
        return self.patience if seen else min(self.patience, FIRST_PATIENCE)

    def _assign(self) -> list[tuple[ComfyUIClient, int]]:
        """Waiting jobs for the servers with the shortest queues, as many as may be ahead there."""
        connected = [server for server in self.servers if server.connected]
        if not connected or self.holds_back():
            return []
        load = {server: server.load for server in connected}
        ours = {server: len(server.runs) for server in connected}
        assigned: list[tuple[ComfyUIClient, int]] = []
        given_up: list[int] = []
        for number in tuple(self.waiting) if self.bound else self.waiting:
            if number in self.bound:
                server = next(one for one in self.servers if one.url == self.bound[number])
                if server.connected or server.tried:
                    del self.bound[number]
                if server.connected:  # it is in its queue already
                    ours[server] += 1
                    assigned.append((server, number))
                    continue
                if not server.tried:
                    continue
            refused = self._refusals(number)
            able = [server for server in connected if server not in refused]
            if not able:
                given_up.append(number)
                self.failed(number, next(iter(refused.values())))
                if self._error is not None:
                    return []
                continue
            server = min(able, key=lambda server: load[server])
            # The last ones are not queued behind others: the first server that is free takes them.
            most = JOBS_PER_SERVER if len(self.waiting) - len(assigned) > len(connected) else 1
            if ours[server] < most:
                load[server], ours[server] = load[server] + 1, ours[server] + 1
                assigned.append((server, number))
            elif min(ours.values()) >= most:
                break
        for number in (*(number for _, number in assigned), *given_up):
            self.waiting.remove(number)
        self._drawing += len(assigned)
        return assigned

    def _refusals(self, number: int) -> dict[ComfyUIClient, RepriseError]:
        found = self._refused.get(number, {})
        if self.alike is not None and self._refused_alike:
            found = {**self._refused_alike.get(self.alike(number), {}), **found}
        return found

    async def _one(self, server: ComfyUIClient, number: int) -> None:
        """One job on one server."""
        try:
            await self.draw(server, number)
        except (ServerLost, NoPicture) as error:
            if isinstance(error, ServerLost):
                server.disconnect(error)
            tries = self._tries[number] = self._tries.get(number, 0) + 1
            if tries > self.retries:
                times = f"{self.describe(number)} failed {tries} times, at last on {server.url}"
                self.failed(number, RenderFailed(f"{times}: {error}; its log may say why"))
            else:
                self.waiting.appendleft(number)
        except RepriseError as error:
            if isinstance(error, Unsupported) and self.alike is not None:
                refused = self._refused_alike.setdefault(self.alike(number), {})
                if server not in refused and len(self.servers) > 1:
                    log.warning("left out for some of the pictures: %s", error)
                refused[server] = error
            else:
                self._refused.setdefault(number, {})[server] = error
            self.waiting.appendleft(number)
        except Exception as error:
            self.stop(error)
        finally:
            self._drawing -= 1
            if self._changed is not None:
                self._changed.set()

    async def _keep_connected(self, server: ComfyUIClient) -> None:
        """The server's connection, made anew whenever it breaks."""
        assert self._changed is not None
        pause = FIRST_PAUSE
        while True:
            try:
                await server.serve(self._changed.set)
            except ServerLost as reason:
                if server.connected:
                    log.warning("%s is dropped: %s", server.url, reason)
                    pause = FIRST_PAUSE
                server.give_up_runs(reason)
                self._changed.set()
            except Exception as error:
                self.stop(error)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _clean_up(self, tasks: list[asyncio.Task]) -> None:
        """Take back what is not finished, also from a lost server, and close all connections."""
        unfinished = bool(self.waiting or self._drawing or self.more)
        while tasks:  # wait_for of Python 3.10 and 3.11 may swallow a cancellation
            for task in tasks:
                task.cancel()
            tasks = list((await asyncio.wait(tasks, timeout=0.5))[1])
        cancels = [
            one.cancel_runs() for one in self.servers if one.was_lost or (unfinished and one.connected)
        ]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*cancels, return_exceptions=True), CANCEL_SECONDS)
        for server in self.servers:
            await server.close()


async def probe_all(servers: Sequence[ComfyUIClient]) -> list[str]:
    """The versions of the servers that answer, and warnings about the others and about differences.

    Raises RenderFailed where none answers.
    """
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
            "the ComfyUI servers differ (%s), so their pictures may, too", "; ".join(sorted(set(versions)))
        )
    for server in servers:
        if not server.version:
            log.warning("%s is left out until it answers: %s", server.url, server.reason)
    return versions


def no_server(servers: Sequence[ComfyUIClient]) -> RenderFailed:
    """None of the servers answers: each with its reason."""
    reasons = "; ".join(f"{server.url}: {server.reason}" for server in servers)
    return RenderFailed(f"no ComfyUI server answers ({reasons}); start one, or correct the address")
