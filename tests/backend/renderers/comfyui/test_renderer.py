"""The renderer of saved workflows: servers that are slow, die, come back, refuse and send invalid answers."""

import io
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import (
    BadInput,
    Interrupted,
    RenderFailed,
    RepriseError,
    UnknownName,
    Unsupported,
)
from reprise.backend.core.types import Job
from reprise.backend.renderers.comfyui import client as client_module
from reprise.backend.renderers.comfyui import pool
from reprise.backend.renderers.comfyui.renderer import ComfyUIRenderer, _decoded, parse_name
from reprise.backend.renderers.comfyui.sockets import NamedSockets
from reprise.backend.renderers.comfyui.workflow import prepare
from reprise.backend.storage.cache import Cache

from ....fake_comfyui import GRAPH, STEPS, FakeComfyUI, picture
from ....fake_endpoint import closed_url

JOBS = [Job(f"prompt {i}", i) for i in range(8)]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def servers():
    """Makes servers, and stops them."""
    made = []

    def make(**settings):
        made.append(FakeComfyUI(**settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def renderer(*servers, **settings) -> ComfyUIRenderer:
    return ComfyUIRenderer(prepare(GRAPH), [one.url for one in servers], **settings)


def check(rendered, jobs=JOBS):
    assert len(rendered.images) == len(jobs) and rendered.pruned_at == [None] * len(jobs)
    for image, job in zip(rendered.images, jobs, strict=True):
        assert image.dtype == torch.float32 and image.shape == (8, 8, 3)
        assert np.array_equal(image.mul(255).round().byte().numpy(), picture(job.prompt, job.seed))


def fails(drawing, error=RenderFailed, jobs=JOBS[:1]) -> str:
    """The one line that a render fails with."""
    with pytest.raises(error) as caught:
        drawing.render(jobs)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize("sink", [True, False])
def test_pictures_come_back_in_order(servers, sink):
    one = servers(sink=sink)
    rendered = renderer(one).render(JOBS)
    check(rendered)
    assert sorted(one.runs) == sorted((job.prompt, job.seed) for job in JOBS)
    # Guided by CFG 7: two rows a step.
    assert rendered.denoiser_rows == rendered.denoiser_rows_full == len(JOBS) * STEPS * 2
    # Only prompt and seed change, so the server keeps the rest.
    for graph in one.graphs:
        graph["2"]["inputs"]["text"] = graph["5"]["inputs"]["seed"] = None
    assert all(graph == one.graphs[0] for graph in one.graphs)
    assert len({body["client_id"] for body in one.posted("prompt")}) == 1


def test_a_job_that_is_repeated_is_drawn_once(servers, tmp_path):
    one = servers()
    drawing = renderer(one, cache=Cache(tmp_path))
    check(drawing.render([*JOBS[:2], *JOBS[:2]]), [*JOBS[:2], *JOBS[:2]])
    assert len(one.runs) == 2
    again = renderer(one, cache=Cache(tmp_path)).render(JOBS[:3])
    check(again, JOBS[:3])
    assert len(one.runs) == 3
    assert (again.denoiser_rows, again.denoiser_rows_full) == (2 * STEPS, 3 * 2 * STEPS)


def test_a_picture_of_another_version_is_not_cached(servers, tmp_path, caplog):
    """The cache would return it for the version that the fingerprint names."""
    old, new = servers(delay=0.02), servers(delay=0.02, version="0.34.0")
    drawing = renderer(old, new, cache=Cache(tmp_path))
    assert "the ComfyUI servers differ (ComfyUI 0.33.0" in caplog.text
    check(drawing.render(JOBS))
    assert new.runs and len(list(tmp_path.rglob("*.png"))) == len(old.runs)
    assert drawing.fingerprint == renderer(old).fingerprint != renderer(new).fingerprint


def test_two_servers_share_the_work(servers):
    both = [servers(delay=0.05), servers(delay=0.05)]
    check(renderer(*both).render(JOBS))
    assert all(one.runs for one in both) and sum(len(one.runs) for one in both) == len(JOBS)


def test_a_server_that_others_use_is_spared(servers):
    busy, free = servers(delay=0.02), servers(delay=0.02)
    busy.queued = 50
    check(renderer(busy, free).render(JOBS))
    assert not busy.runs


def test_a_slow_server_does_not_hold_up_the_last_pictures(servers):
    slow, fast = servers(), servers()

    def wait():
        while len(fast.runs) < len(JOBS) - 2 and slow.life:
            time.sleep(0.01)

    slow.at_run[0] = wait
    check(renderer(slow, fast).render(JOBS))
    assert len(slow.runs) <= 2


def test_a_server_that_dies_is_dropped_and_its_jobs_drawn_elsewhere(servers, caplog):
    first, second = servers(delay=0.02), servers(delay=0.02)
    second.at_run[1] = second.stop
    check(renderer(first, second).render(JOBS))
    assert f"{second.url} is dropped" in caplog.text
    assert len(second.runs) == 2 and len(first.runs) >= len(JOBS) - 1


def test_a_server_that_comes_back_is_readmitted(servers, caplog):
    """With one server alone, the work waits for it; the same jobs go on."""
    one = servers(delay=0.01)

    def restart():
        one.stop()
        threading.Timer(0.2, one.start).start()

    one.at_run[2] = restart
    check(renderer(one).render(JOBS))
    assert f"{one.url} is dropped" in caplog.text and f"{one.url} answers again" in caplog.text


def test_a_server_that_was_down_at_first_takes_part_later(servers, caplog):
    first, late = servers(delay=0.05), servers(delay=0.05)
    late.stop()
    drawing = renderer(first, late)
    assert f"{late.url} is left out until it answers" in caplog.text
    late.start()
    check(drawing.render(JOBS))
    assert late.runs


def test_no_server_at_all():
    url = closed_url().removesuffix("/v1")
    with pytest.raises(RenderFailed, match=f"no ComfyUI server answers \\({url}: cannot reach it"):
        ComfyUIRenderer(prepare(GRAPH), [url])


def test_all_servers_gone_for_good(servers):
    one = servers()
    one.at_run[1] = one.stop
    said = fails(renderer(one, patience=0.3), jobs=JOBS)
    assert f"no ComfyUI server answers ({one.url}: " in said


def test_a_picture_that_kills_every_server_is_given_up(servers):
    one = servers()
    one.at_other_runs = lambda: (one.stop(), threading.Timer(0.05, one.start).start()) and None
    said = fails(renderer(one, retries=1))
    assert f"the picture of seed 0 failed 2 times, at last on {one.url}" in said
    assert len(one.runs) == 2


def test_silence_is_bounded(servers):
    """A server that stops talking in the middle is lost, also while its connection stands."""
    mute, well = servers(), servers(delay=0.02)

    def stall():
        while mute.life and not mute.interrupted:
            time.sleep(0.01)

    mute.at_other_runs = stall
    check(renderer(mute, well, silence=0.3, retries=50).render(JOBS))
    said = fails(renderer(mute, silence=0.2, retries=1))
    assert "failed 2 times" in said and "it said nothing about a picture for 0.2 s" in said


def test_waiting_in_the_queue_does_not_count_as_silence(servers):
    one = servers()

    def talk():  # longer than the silence, while the second run waits
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for client in list(one.sockets):
                one.send_event(client, "progress", node="5", prompt_id=one.running[0], value=1, max=STEPS)
            time.sleep(0.05)

    one.at_run[0] = talk
    check(renderer(one, silence=2).render(JOBS[:3]), JOBS[:3])
    assert len(one.runs) == 3


def test_a_queue_that_somebody_clears(servers, monkeypatch):
    """Nothing is said of a run that is taken out of the queue; it is queued again."""
    monkeypatch.setattr(client_module, "QUEUE_CHECK_SECONDS", 0.1)
    one = servers(delay=0.05)
    one.at_run[0] = lambda: one.pending.clear()
    check(renderer(one).render(JOBS))
    assert len(one.runs) == len(JOBS)


def test_a_node_that_fails_is_named(servers):
    one, other = servers(), servers()
    fault = {
        "node_id": "5",
        "node_type": "KSampler",
        "exception_type": "torch.OutOfMemoryError",
        "exception_message": "Allocation on device\nTried to allocate 20 GiB",
    }
    one.at_other_runs = other.at_other_runs = lambda: [("execution_error", fault)]
    said = fails(renderer(one, other))
    assert "node 5 (KSampler) failed: OutOfMemoryError: 'Allocation on device Tried" in said
    assert len(one.runs) == len(other.runs) == 1  # it was tried wherever it could be
    other.at_other_runs = None
    check(renderer(one, other).render(JOBS))


def test_a_workflow_that_is_refused_says_why(servers):
    one = servers()
    fault = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "ckpt_name: 'sd15.safetensors' not in ['sdxl.safetensors']",
    }
    one.answers["prompt"] = (
        400,
        json.dumps(
            {
                "error": {
                    "type": "prompt_outputs_failed_validation",
                    "message": "Prompt outputs failed validation",
                },
                "node_errors": {
                    "1": {
                        "class_type": "CheckpointLoaderSimple",
                        "dependent_outputs": ["reprise"],
                        "errors": [fault],
                    }
                },
            }
        ).encode(),
    )
    said = fails(renderer(one), Unsupported)
    assert f"{one.url} cannot run the workflow: node 1 (Load Checkpoint, CheckpointLoaderSimple): " in said
    assert "'sd15.safetensors' not in" in said and Unsupported.exit_code == 2
    one.answers["prompt"] = (
        400,
        json.dumps(
            {
                "error": {"type": "missing_node_type", "message": "Node 'Sharpen' not found."},
                "node_errors": {},
            }
        ).encode(),
    )
    assert "Node 'Sharpen' not found." in fails(renderer(one), Unsupported)
    check(renderer(one, servers()).render(JOBS))  # the model is on the other one


INVALID = {
    "a page instead of the queue": ("queue", (200, b"<html>hello</html>"), "does not show its queue"),
    "a page instead of a queued run": ("prompt", (200, b"<html>hello</html>"), "does not take the workflow"),
    "a failure of the server": ("prompt", (500, b"Internal Server Error"), "(500: 'Internal Server Error')"),
    "an answer without a name": ("prompt", (200, b'{"prompt_id": 3}'), "does not take the workflow"),
    "no websocket": ("ws", (200, b"hello"), "the websocket broke"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_answers_are_a_lost_server(servers, case):
    path, answer, part = INVALID[case]
    bad, good = servers(), servers(delay=0.01)
    drawing = renderer(bad, retries=1, patience=0.3)
    bad.answers[path] = answer
    assert part in fails(drawing)
    assert not bad.runs
    check(renderer(bad, good, retries=50).render(JOBS))


@pytest.mark.parametrize(
    "message", [b"not json", b'"text"', b'{"type": "status", "data": {}}', b'{"type": "progress", "data": 3}']
)
def test_invalid_websocket_messages(servers, message):
    bad, good = servers(), servers(delay=0.01)
    bad.at_other_runs = lambda: [bad.frame(client, 0x81, message) for client in list(bad.sockets)] and []
    check(renderer(bad, good, retries=50).render(JOBS))
    assert "its message is none of ComfyUI's" in fails(renderer(bad, retries=0))


def test_messages_of_custom_nodes_are_ignored(servers):
    one = servers()
    theirs = (
        (0x81, b'{"type": "crystools.monitor", "data": [1]}'),
        (0x82, b"\0\0"),
        (0x82, b"\0\0\0\x09 something"),
    )
    one.at_other_runs = lambda: [one.frame(to, *said) for to in list(one.sockets) for said in theirs] and None
    check(renderer(one).render(JOBS))


def test_invalid_pictures(servers):
    one = servers(sink=False)
    drawing = renderer(one, retries=1)
    one.answers["view"] = 200, b"\x89PNG\r\n\x1a\n and nothing more"
    said = fails(drawing)
    assert "failed 2 times" in said and "the picture cannot be read" in said
    one.answers["view"] = 404, b"gone"
    assert "cannot be fetched (404: 'gone')" in fails(drawing)
    one.at_other_runs = lambda: [("execution_success", {})]
    assert "ended without a picture" in fails(drawing)
    two = [{"filename": f"{i}.png", "subfolder": "", "type": "temp"} for i in range(2)]
    one.answers["view"] = 200, b""
    shown = {"node": "reprise", "output": {"images": two}}
    one.at_other_runs = lambda: [("executed", shown), ("execution_success", {})]
    assert "gives 2 pictures for one seed" in fails(drawing, Unsupported)


def test_a_run_that_somebody_stops_on_the_server_is_tried_again(servers):
    one = servers()
    one.at_run[0] = lambda: [("execution_interrupted", {"node_id": "5"})]
    check(renderer(one).render(JOBS[:1]), JOBS[:1])
    one.at_other_runs = one.at_run[0]
    assert "it was stopped on the server" in fails(renderer(one))


def test_ctrl_c_cancels_queued_runs(servers):
    """The signal itself, which comes while the caller waits."""
    one = servers()

    def stop():
        while not one.pending and one.life:  # the second job's request is still on its way
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        while one.life and not one.interrupted:
            time.sleep(0.01)

    one.at_run[0] = stop
    with pytest.raises(KeyboardInterrupt):
        renderer(one).render(JOBS)
    assert one.interrupted and not one.pending and len(one.runs) == 1


@pytest.mark.parametrize("error", [Interrupted("stop"), KeyboardInterrupt()])
def test_an_interrupt_cancels_queued_runs(servers, error):
    """And leaves alone what others queued."""
    one = servers(delay=30.0)
    drawing = renderer(one)
    with one.lock:
        one.pending.append(("other", {}, {"client_id": "somebody else"}))

    names = []

    def progress(done, whole):
        assert whole == len(JOBS) * STEPS
        with one.lock:
            if one.running and one.running[0] != "other" and one.pending:
                names[:] = one.running[0], one.pending[0][0]
        if names:
            raise error

    one.run = lambda name, graph, extra: FakeComfyUI.run(one, name, graph, extra) if name != "other" else None
    with pytest.raises(type(error)):
        drawing.render(JOBS, progress=progress)
    assert one.interrupted
    assert one.posted("interrupt") == [{"prompt_id": names[0]}]
    assert one.posted("queue") == [{"delete": names[1:]}]
    assert not any(name in names for name, _, _ in one.pending)


def test_a_failure_cancels_the_other_runs(servers):
    one = servers(delay=0.02)
    one.at_run[1] = lambda: [("execution_error", {"node_id": "5", "exception_message": "no"})]
    fails(renderer(one), jobs=JOBS)
    deadline = time.monotonic() + 5
    while (one.running or one.pending) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not one.pending and len(one.runs) <= 3


def test_progress_counts_the_steps_of_all(servers):
    seen = []
    renderer(servers(delay=0.15)).render(JOBS[:3], progress=lambda *counts: seen.append(counts))
    assert {whole for _, whole in seen} == {3 * STEPS} and seen[-1][0] == 3 * STEPS
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len({d for d, _ in seen}) > 2


def test_invalid_jobs_are_refused(servers):
    drawing = renderer(servers())

    class Watcher:
        steps = frozenset({1})

        def look(self, step, rows, previews):
            return rows

    with pytest.raises(Unsupported, match="pruning needs previews.*--prune none"):
        drawing.render(JOBS, Watcher())
    with pytest.raises(BadInput, match="blank"):
        drawing.render([Job(" ", 1)])
    with pytest.raises(BadInput, match="seed"):
        drawing.render([Job("a", -1)])
    assert drawing.render([]).images == []
    with pytest.raises(BadInput, match="a server"):
        ComfyUIRenderer(prepare(GRAPH), [])


def test_it_runs_inside_a_running_loop(servers):
    import asyncio

    one = servers()

    async def inside():
        return renderer(one).render(JOBS[:1])

    check(asyncio.run(inside()), JOBS[:1])


def test_answers_are_bounded(servers, monkeypatch):
    one = servers()
    drawing = renderer(one, retries=0)
    monkeypatch.setattr(client_module, "MAX_BYTES", 4096)
    one.answers["prompt"] = 200, b"x" * 10_000
    assert "it answered with more than 4,096 bytes" in fails(drawing)


@pytest.mark.parametrize(
    "text,file,urls,names",
    [
        ("flow.json@http://localhost:8188", "flow.json", ["http://localhost:8188"], NamedSockets()),
        (
            "a,b.json@https://a/comfy/,http://b:8188",
            "a,b.json",
            ["https://a/comfy", "http://b:8188"],
            NamedSockets(),
        ),
        (
            "/x/flow.json,prompt=6.text+7.text,seed=3.seed,steps=8,output=9@http://a",
            "/x/flow.json",
            ["http://a"],
            NamedSockets("6.text+7.text", "3.seed", "8", "9"),
        ),
        ("me@home.json,prompt=12:6.text@http://a", "me@home.json", ["http://a"], NamedSockets("12:6.text")),
    ],
)
def test_names(text, file, urls, names):
    found, servers, named = parse_name(text)
    assert (str(found), servers, named) == (file, urls, names)


@pytest.mark.parametrize(
    "text,parts",
    [
        ("flow.json", ["expected comfyui:WORKFLOW.json@URL"]),
        ("@http://a", ["file is missing"]),
        ("flow.json@http://", ["expected an address such as http://127.0.0.1:8188"]),
        ("flow.json@http://a,ftp://b", ["an address such as", "'ftp://b'"]),
        ("flow.json@http://me:secret@a", ["without a user"]),
        ("flow.json@http://a,", ["an address such as"]),
        ("flow.json,promt=6.text@http://a", ["unknown option of comfyui: 'promt'", "did you mean 'prompt'"]),
        ("flow.json,prompt=@http://a", ["prompt= is given once"]),
        ("flow.json,seed=1,seed=2@http://a", ["seed= is given once", "seed=2"]),
    ],
)
def test_invalid_names(text, parts):
    with pytest.raises((BadInput, UnknownName)) as caught:
        parse_name(text)
    assert isinstance(caught.value, RepriseError) and "secret" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_transparent_picture_is_laid_on_white():
    file = io.BytesIO()
    Image.new("RGBA", (2, 1), (0, 0, 255, 0)).save(file, "PNG")
    assert _decoded(file.getvalue()).tolist() == [[[1.0, 1.0, 1.0]] * 2]
