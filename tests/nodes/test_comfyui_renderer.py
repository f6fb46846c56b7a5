"""The renderer of saved workflows against real ComfyUI servers: one that sends pictures over the websocket,
and one without that node."""

import json
import shutil
import time

import numpy as np
import pytest

from reprise.backend.core.errors import Interrupted, RenderFailed, Unsupported
from reprise.backend.core.types import Job
from reprise.backend.renderers.comfyui.renderer import ComfyUIRenderer
from reprise.backend.renderers.comfyui.workflow import load_workflow, prepare

from .conftest import ROOT, Server, needed

pytestmark = pytest.mark.comfyui
STEPS = 8
GRAPH = {
    "1": {"class_type": "RepriseLoadShapeWorld", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a photo of a red circle", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
    "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 1,
            "steps": STEPS,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "comfyui_renderer"}},
}
PROMPTS = ("a photo of a red circle", "a photo of two blue stars", "a photo of a green heart")
JOBS = [Job(PROMPTS[i % 3], 100 + i) for i in range(12)]


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A server that has SaveImageWebsocket, as every ComfyUI in its own folder does."""
    made = Server(tmp_path_factory.mktemp("second"))
    shutil.copy(needed()[0] / "custom_nodes" / "websocket_image_save.py", made.base / "custom_nodes")
    try:
        made.wait()
        yield made
    finally:
        made.stop()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def renderer(*servers: Server, graph=GRAPH, **settings) -> ComfyUIRenderer:
    return ComfyUIRenderer(prepare(graph), [url(server) for server in servers], **settings)


def pixels(rendered) -> list[np.ndarray]:
    return [image.mul(255).round().byte().numpy() for image in rendered.images]


def cached_nodes(server: Server) -> set[str]:
    """The nodes that the server's last run did not compute again."""
    while any(server.http.get("/queue").json().values()):  # what leaves the queue enters the history
        time.sleep(0.05)
    last = list(server.http.get("/history").json().values())[-1]
    messages = dict(last["status"]["messages"])
    return set(messages["execution_cached"]["nodes"])


@pytest.fixture(scope="module")
def alone(server):
    """What one server draws for JOBS."""
    return pixels(renderer(server).render(JOBS))


def test_pictures_equal_those_of_the_graph(server, alone):
    """They equal what SaveImage saves for the same prompt and seed, and nothing else is saved."""
    saved = server.base / "output"
    assert not list(saved.rglob("comfyui_renderer*"))
    for at in (0, 4):
        graph = json.loads(json.dumps(GRAPH))
        graph["2"]["inputs"]["text"], graph["5"]["inputs"]["seed"] = JOBS[at].prompt, JOBS[at].seed
        graph["7"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
        [image] = server.images(server.run(graph), "7")
        assert np.array_equal(image, alone[at])
    assert len({image.tobytes() for image in alone}) == len(JOBS)
    assert all(image.shape == (128, 128, 3) for image in alone)


def test_repeated_jobs_are_not_computed_again(server, second):
    """The server caches the sampler's result; with pictures over the websocket only the sending node runs."""
    for one in (server, second):
        drawing = renderer(one)
        first = pixels(drawing.render(JOBS[:1]))
        assert np.array_equal(first, pixels(drawing.render(JOBS[:1])))
        assert {"1", "2", "3", "4", "5", "6"} <= cached_nodes(one)
        drawing.render([Job(JOBS[0].prompt, 7)])  # another seed: the text is kept
        assert {"1", "2", "3", "4"} <= cached_nodes(one) and not {"5", "6"} & cached_nodes(one)


def test_the_shipped_quick_start_can_be_a_renderer(server, second):
    """PARM is in the graph, and its judge gets the job's prompt; the rewriter before it is bypassed."""
    graph = json.loads((ROOT / "tests" / "data" / "api" / "shapeworld_quick_start.json").read_text())
    graph["8"]["inputs"].update(candidates=2, steps=4, prune="none")
    drawing = renderer(server, second, graph=graph)
    out = pixels(
        drawing.render(
            [
                Job("a photo of a blue star", 3),
                Job("a photo of a blue star", 3),
                Job("a photo of a green heart", 3),
            ]
        )
    )
    assert np.array_equal(out[0], out[1]) and not np.array_equal(out[0], out[2])
    ran = [
        entry["prompt"][2] for one in (server, second) for entry in one.http.get("/history").json().values()
    ]
    assert any(run.get("8", {}).get("inputs", {}).get("prompt") == "a photo of a green heart" for run in ran)


def test_a_graph_that_the_server_refuses_is_reported_in_one_line(server):
    graph = json.loads(json.dumps(GRAPH))
    graph["5"]["inputs"]["sampler_name"] = "eulre"
    graph["5"]["_meta"] = {"title": "Draw"}
    with pytest.raises(Unsupported, match=r"node 5 \(Draw, KSampler\): .*Value not in list.*eulre"):
        renderer(server, graph=graph).render(JOBS[:1])
    graph = json.loads(json.dumps(GRAPH))
    graph["6"]["class_type"] = "VAEDecoder"
    with pytest.raises(Unsupported, match="VAEDecoder.*not found"):
        renderer(server, graph=graph).render(JOBS[:1])


def test_a_node_that_fails_is_reported_by_name(server, second):
    """After every server has failed once, the workflow is reported as the cause."""
    judged = {
        **GRAPH,
        "8": {"class_type": "RepriseLoadJudge", "inputs": {"judge": "shapeworld"}},
        "9": {
            "class_type": "RepriseRewardScorer",
            "_meta": {"title": "Judge"},
            "inputs": {"images": ["6", 0], "prompt": GRAPH["2"]["inputs"]["text"], "judge": ["8", 0]},
        },
        "7": {"class_type": "SaveImage", "inputs": {"images": ["9", 1], "filename_prefix": "judged"}},
    }
    drawing = renderer(server, second, graph=judged)
    with pytest.raises(RenderFailed, match=r"node 9 \(Judge, RepriseRewardScorer\) failed: .*a cat"):
        drawing.render([Job("a cat", 1)])
    assert drawing.render(JOBS[:1]).images[0].shape == (128, 128, 3)


def test_an_interrupt_stops_the_server_within_a_step(server):
    graph = json.loads(json.dumps(GRAPH))
    graph["5"]["inputs"]["steps"] = 4000
    seen = []

    def progress(done, whole):
        seen.append(done)
        if done > 0:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        renderer(server, graph=graph).render(JOBS[:3], progress=progress)
    queue = server.http.get("/queue").json()
    assert not queue["queue_pending"]
    for _ in range(100):  # the step that it is in
        if not server.http.get("/queue").json()["queue_running"]:
            break
        time.sleep(0.1)
    assert not server.http.get("/queue").json()["queue_running"]
    assert 0 < max(seen) < 3 * 4000


def test_a_killed_server_does_not_change_the_pictures(server, second, alone, caplog):
    """The last test of the module: the second server does not come back."""
    drawing = renderer(server, second)
    assert all(map(np.array_equal, pixels(drawing.render(JOBS)), alone))
    assert len(second.http.get("/history").json()) > 1  # it had its part

    killed = []

    def progress(done, whole):
        if not killed and (running := second.http.get("/queue").json()["queue_running"]):
            killed.append(running)
            second.process.kill()

    more = [Job(job.prompt, job.seed + 1000) for job in JOBS]
    out = pixels(drawing.render(more + JOBS, progress=progress))
    assert killed, "the second server got no work"
    assert f"{url(second)} is dropped" in caplog.text
    assert all(map(np.array_equal, out[len(more) :], alone))
    assert all(map(np.array_equal, out[: len(more)], pixels(renderer(server).render(more))))


def test_a_saved_workflow_file_is_read(tmp_path, server):
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(GRAPH))
    one = ComfyUIRenderer(load_workflow(path, steps=2), [url(server)])
    assert one.steps == 2 and one.fingerprint != renderer(server).fingerprint
    sampler = {**GRAPH["5"], "inputs": {**GRAPH["5"]["inputs"], "steps": 2}}
    same = renderer(server, graph={**GRAPH, "5": sampler})
    assert np.array_equal(pixels(one.render(JOBS[:1])), pixels(same.render(JOBS[:1])))
