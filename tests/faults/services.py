"""The servers that commands ask, each at one address throughout, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ..fake_comfyui import FakeComfyUI
from ..fake_endpoint import MODEL, FakeEndpoint, Play, answer, refusal
from .process import Run


class Service(ABC):
    """A server at `url`. `stop` ends it as a kill does, `start` begins it again, `heal` takes faults back."""

    url: str

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def heal(self) -> None:
        self.stop()
        self.start()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rewrite(body: dict[str, Any]) -> Play:
    """An answer that follows from the request."""
    digest = hashlib.sha256(json.dumps([body["messages"], body["seed"]]).encode()).hexdigest()[:8]
    return answer(
        f"<reason>one thing, number {digest}</reason><prompt>a large thing, number {digest}</prompt>"
    )


class Chat(Service):
    """A chat endpoint; `play` sets what it answers, in turn, and then for ever."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"{MODEL}@http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        self.endpoint = FakeEndpoint(rewrite, port=self.port)

    def stop(self) -> None:
        self.endpoint.stop()

    def play(self, *plays: Any) -> None:
        self.endpoint.plays = list(plays)


class ComfyUI(Service):
    def __init__(self) -> None:
        self.fake = FakeComfyUI()
        self.url = self.fake.url

    def start(self) -> None:
        self.fake.start()

    def stop(self) -> None:
        self.fake.stop()

    def heal(self) -> None:
        self.stop()
        self.fake.delay, self.fake.queued, self.fake.answers = 0.0, 0, {}
        self.fake.at_run, self.fake.at_other_runs = {}, None
        self.fake.runs.clear()
        self.start()


class Rewards(Service):
    """`reprise serve rewards` itself."""

    def __init__(self, folder: Path, *names: str):
        self.folder, self.names, self.port = folder, names, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self, *names: str) -> None:
        words = ["serve", "rewards", "--port", str(self.port)]
        for name in names or self.names:
            words += ["--reward", name]
        self.process = Run(words, self.folder)
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(self.url, timeout=1, trust_env=False)
                return
            except httpx.HTTPError as error:
                gone = self.process.wait_or_none(0.02)
                if gone is not None or time.monotonic() > end:
                    raise AssertionError(f"the server did not start: {gone}") from error

    def stop(self) -> None:
        self.process.send(signal.SIGKILL)
        self.process.wait()


KINDS: dict[str, Callable[[Path], Service]] = {
    "chat": lambda folder: Chat(),
    "comfyui": lambda folder: ComfyUI(),
    "rewards": lambda folder: Rewards(folder, "redness"),
}

# Faults from the start, by kind of server: each sets the server up.
Fault = Callable[[Any], None]
HALF_SENT = Play(b'{"choices": [', headers={"Content-Length": "4000"})

AT_START: dict[str, dict[str, Fault]] = {
    "chat": {
        "not there": lambda chat: chat.stop(),
        "fails once": lambda chat: chat.play(refusal(500, "oops"), rewrite),
        "fails always": lambda chat: chat.play(refusal(500, "oops")),
        "is busy twice": lambda chat: chat.play(
            *[Play({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"})] * 2, rewrite
        ),
        "hangs up inside its first answer": lambda chat: chat.play(HALF_SENT, rewrite),
        "hangs up inside every answer": lambda chat: chat.play(HALF_SENT),
        "hangs up after two answers": lambda chat: chat.play(rewrite, rewrite, HALF_SENT),
        "answers a page": lambda chat: chat.play(Play(b"<html>Welcome</html>")),
        "answers bad UTF-8": lambda chat: chat.play(Play(b'{"choices": "\xff\xfe"}')),
        "answers something else": lambda chat: chat.play(Play([1, 2])),
        "answers slowly": lambda chat: chat.play(lambda body: slowly(rewrite(body))),
        "sends it elsewhere": lambda chat: chat.play(Play(b"", 302, {"Location": "http://127.0.0.1:9/"})),
    },
    "comfyui": {
        "not there": lambda comfyui: comfyui.stop(),
        "draws slowly": lambda comfyui: setattr(comfyui.fake, "delay", 0.2),
        "a run fails": lambda comfyui: comfyui.fake.at_run.update({1: failed}),
        "every run fails": lambda comfyui: setattr(comfyui.fake, "at_other_runs", failed),
        "refuses what it is asked": lambda comfyui: comfyui.fake.answers.update({"prompt": (500, b"oops")}),
        "answers a page": lambda comfyui: comfyui.fake.answers.update({"system_stats": (200, b"<html>")}),
        "dies at its third run": lambda comfyui: comfyui.fake.at_run.update({2: comfyui.fake.stop}),
    },
    "rewards": {
        "not there": lambda rewards: rewards.stop(),
        "serves another reward": lambda rewards: (rewards.stop(), rewards.start("blueness")),
        "another server is there": lambda rewards: (rewards.stop(), take_over(rewards)),
    },
}

# Faults while the command is at work: each happens to the server, and the command goes on.
AT_WORK: dict[str, dict[str, Fault]] = {
    "chat": {
        "dies": lambda chat: chat.stop(),
        "starts again": lambda chat: chat.heal(),
    },
    "comfyui": {
        "dies": lambda comfyui: comfyui.stop(),
        "starts again": lambda comfyui: comfyui.heal(),
    },
    "rewards": {
        "dies": lambda rewards: rewards.stop(),
        "starts again": lambda rewards: rewards.heal(),
        "stands still for two seconds": lambda rewards: rewards.process.pause(2),
    },
}


def slowly(play: Play) -> Play:
    play.delay = 0.3
    return play


def failed() -> list[tuple[str, dict[str, Any]]]:
    error = {"node_id": "5", "node_type": "KSampler", "exception_type": "RuntimeError"}
    return [("execution_error", {**error, "exception_message": "no memory", "traceback": []})]


def take_over(rewards: Rewards) -> None:
    """Something that is no reward server listens at its address until it is healed."""
    other = FakeEndpoint(port=rewards.port)
    before = rewards.stop

    def stop() -> None:
        other.stop()
        rewards.stop = before

    rewards.stop = stop
