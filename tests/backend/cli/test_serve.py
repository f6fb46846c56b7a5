"""`reprise serve rewards` for real, in a process of its own; and rewards that are elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from reprise.backend.core.errors import EndpointError
from reprise.backend.rewards import remote
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.storage.images import to_pil

from ...reward_server import PROMPTS, Brightness, clean, scene, serving  # noqa: F401  clean: a fixture

PROMPT = "a red circle"

SLOW = """
import sys, time
from reprise.backend.rewards.shapeworld import ShapeWorldSoft
from reprise.backend.serving import server
server.BATCH_SECONDS = 0.2
plain = ShapeWorldSoft.score
def score(self, images, prompts):
    if images.shape[1] == 8:  # this one takes until the test has done with us
        print("judging", file=sys.stderr, flush=True)
        time.sleep(100)
    return plain(self, images, prompts)
ShapeWorldSoft.score = score
from reprise.backend.cli.main import main
main()
"""


@pytest.fixture
def process(tmp_path):
    """A server in its own process: the process and its address."""
    words = [sys.executable, "-c", SLOW, "serve", "rewards", "--port", "0"]
    # A test run in the background ignores SIGINT, and so would its children.
    made = subprocess.Popen(
        words,
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = made.stderr.readline()
    found = re.fullmatch(r"shapeworld at (http://127\.0\.0\.1:\d+); Ctrl-C stops\n", line)
    assert found, line + made.stderr.read()
    yield made, found[1]
    made.kill()
    made.communicate()


def asked_in_a_thread(reward):
    """A request that is in work when this returns, and what will come of it."""
    told = []

    def ask():
        try:
            told.append(reward.score(torch.zeros(1, 8, 8, 3), [PROMPT]))
        except EndpointError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, told


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_it_with_one_line_and_leaves_nobody_waiting(process):
    server, url = process
    reward = remote.connect(url, "shapeworld", retries=1)
    assert reward.score(scene(PROMPT, 0)[None], [PROMPT])[0] > 0.9
    thread, told = asked_in_a_thread(reward)
    assert server.stderr.readline() == "judging\n"
    server.send_signal(signal.SIGINT)
    thread.join(60)
    out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (130, "", "reprise: stopped; requests answered: 1\n")
    assert re.search("is stopping|cannot reach the reward server", str(told[0]))


def test_a_server_that_is_killed_while_it_judges(process):
    server, url = process
    reward = remote.connect(url, "shapeworld", retries=3)
    thread, told = asked_in_a_thread(reward)
    assert server.stderr.readline() == "judging\n"
    server.kill()
    thread.join(60)
    assert isinstance(told[0], EndpointError)
    assert f"cannot reach the reward server {url} after 4 tries" in str(told[0])


def test_a_thousand_requests_from_sixteen_clients_are_as_if_scored_here(process):
    """Nothing lost, nothing doubled, nothing changed, with the settings that both have by themselves."""
    server, url = process
    cases = [(scene(prompt, seed)[None], [prompt]) for prompt in PROMPTS for seed in range(25)]
    judge = ShapeWorldSoft()
    expected = [judge.score(*case) for case in cases]

    def client(number):
        reward = remote.connect(url, "shapeworld")
        return [(i, reward.score(*cases[i % len(cases)])) for i in range(number, 1000, 16)]

    with ThreadPoolExecutor(16) as pool:
        found = [answer for answers in pool.map(client, range(16)) for answer in answers]
    assert sorted(found) == [(i, expected[i % len(cases)]) for i in range(1000)]
    assert len({score for [score] in expected}) > 20
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=60)[1] == "reprise: stopped; requests answered: 1000\n"


def refused(result, part, code=2):
    assert (result.code, result.out) == (code, ""), result.err
    assert part in result.err and len(result.err.splitlines()) == 1, result.err


@pytest.mark.parametrize(
    "words,part",
    [
        (["--host", "0.0.0.0"], "set REPRISE_SERVE_KEY"),
        (["--host", "::"], "set REPRISE_SERVE_KEY"),
        (["--host", "judges.example"], "set REPRISE_SERVE_KEY"),
        (["--reward", "shapeword"], "did you mean 'shapeworld'"),
        (["--reward", "length"], "reads rewrites, not pictures"),
        (["--reward", "remote:shapeworld"], "expected remote:NAME@URL"),
        (["--port", "70000"], "--port"),
        (["--queue", "0"], "--queue"),
    ],
)
def test_refuses_to_start(reprise, words, part):
    refused(reprise("serve", "rewards", *words), part)


def test_refuses_a_key_that_is_none_and_a_port_in_use(reprise, monkeypatch):
    with serving(Brightness()) as server:
        port = server.url.rpartition(":")[2]
        refused(reprise("serve", "rewards", "--port", port), "); take another --port")
    monkeypatch.setenv("REPRISE_SERVE_KEY", "two words")
    result = reprise("serve", "rewards")
    refused(result, "REPRISE_SERVE_KEY holds characters")
    assert "two words" not in result.err


@pytest.fixture
def picture(tmp_path):
    to_pil(scene(PROMPT, 0)[None])[0].save(tmp_path / "p.png")


def test_rewards_elsewhere_on_the_command_line(reprise, drawn, picture, tmp_path):
    with serving(ShapeWorldSoft(), Brightness()) as server:
        judge, other = f"remote:shapeworld@{server.url}", f"remote:brightness@{server.url}"
        rows = json.loads(reprise("score", "p.png", "--prompt", PROMPT, "--reward", judge, "--json").out)
        here = json.loads(reprise("score", "p.png", "--prompt", PROMPT, "--json").out)
        assert rows[0]["scores"][judge] == here[0]["scores"]["shapeworld"]
        words = ("render", PROMPT, "--renderer", "fake", "--rewriter", "none", "--best-of", 2, "--json")
        record = json.loads(reprise(*words, "--judge", judge, "--reward", f"{other}=0.5").out)
        assert set(record["candidates"][0]["scores"]) == {"shapeworld", "brightness"}
        assert record["settings"]["rewards"] == {other: 0.5} and record["reflection"]
        refused(
            reprise("score", "p.png", "--prompt", PROMPT, "--reward", f"remote:bright@{server.url}"),
            "did you mean 'brightness'?",
        )
        refused(reprise("score", "p.png", "--prompt", "a cat", "--reward", judge), "name one of its shapes")


@pytest.mark.parametrize(
    "name", ["remote:", "remote:shapeworld", "remote:@http://127.0.0.1:1", "remote:shapeworld@127.0.0.1:1"]
)
def test_addresses_that_are_none(reprise, picture, name):
    refused(reprise("score", "p.png", "--prompt", PROMPT, "--reward", name), "expected remote:NAME@URL")
