"""`reprise train grpo` against real ComfyUI servers: the pictures are the workflow's, and who draws them, or
dies over it, changes nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from reprise.backend.cli.main import run as reprise
from reprise.backend.renderers.comfyui import client as client_module
from reprise.backend.renderers.comfyui.pool import JOBS_PER_SERVER
from reprise.backend.rewriters.reprompt import EMBEDDED_REWRITER, RePromptRewriter
from reprise.backend.storage.files import read_lines

from .conftest import Server
from .test_comfyui_renderer import GRAPH, url

pytestmark = pytest.mark.comfyui
STEPS, PROMPTS, REWRITES = 5, 2, 3
SETTINGS = {
    "model": "shapeworld",
    "rewards": {"shapeworld": 1.0, "structure": 0.25},
    "prompts_per_step": PROMPTS,
    "rewrites": REWRITES,
    "batch_size": PROMPTS * REWRITES,
    "max_steps": STEPS,
    "learning_rate": 3e-4,
    "warmup_ratio": 0.0,
    "max_new_tokens": 128,
    "std_floor": 1e-4,
    "resample": 0,
    "save_every": STEPS,
    "gradient_checkpointing": False,
    "device": "cpu",
    "prompts": "prompts.txt",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The workflow with few steps, and prompts that have several rewrites."""
    made = tmp_path_factory.mktemp("grpo")
    sampler = {**GRAPH["5"], "inputs": {**GRAPH["5"]["inputs"], "steps": 4}}
    (made / "flow.json").write_text(json.dumps({**GRAPH, "5": sampler}))
    (made / "prompts.txt").write_text(
        "a photo of two red circles\na photo of a blue star and a green heart\n"
        "a photo of a ring on a pink background\na photo of a cyan cross above a red ring\n"
    )
    return made


@pytest.fixture
def draws(monkeypatch):
    """[server, prompt, seed, whether it arrived] of every requested picture."""
    found, plain = [], client_module.ComfyUIClient.draw

    async def draw(self, workflow, graph, progress):
        row = [self.url, graph["2"]["inputs"]["text"], graph["5"]["inputs"]["seed"], False]
        found.append(row)
        picture = await plain(self, workflow, graph, progress)
        row[3] = True
        return picture

    monkeypatch.setattr(client_module.ComfyUIClient, "draw", draw)
    return found


def train(folder, name, *servers):
    """The run folder of a training that these servers draw for."""
    renderer = f"comfyui:{folder / 'flow.json'}@{','.join(url(one) for one in servers)}"
    settings = {**SETTINGS, "prompts": str(folder / "prompts.txt"), "renderer": {"name": renderer}}
    (folder / f"{name}.yaml").write_text(json.dumps(settings))
    assert reprise(["train", "grpo", str(folder / f"{name}.yaml"), "--out", str(folder / name)]) == 0
    return folder / name


def weights(folder):
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


def rollouts(run):
    return read_lines(run / "rollouts" / "rollouts.jsonl")


def pictures(run):
    """Name -> bytes of the pictures on record."""
    return {path.stem: path.read_bytes() for path in run.glob("rollouts/pictures/*/*.png")}


def jobs(run):
    """Name -> (prompt, seed) of the pictures that the record names."""
    return {
        name: (line["rewrite"], seed)
        for line in rollouts(run)
        for name, seed in zip(line["pictures"], line["seeds"])
        if line["pictures"]
    }


@pytest.fixture(scope="module")
def alone(server, folder):
    return train(folder, "alone", server)


def test_training_with_a_comfyui_server_makes_steps(alone):
    steps = read_lines(alone / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert any(row["zero_variance"] < 1 for row in steps) and any(row["loss"] for row in steps)
    before, after = weights(EMBEDDED_REWRITER), weights(alone / "final")
    assert before.keys() == after.keys() and any(not before[name].equal(after[name]) for name in after)
    [[rewrite]] = RePromptRewriter(alone / "final", device="cpu").rewrite(["a photo of two red circles"])
    assert rewrite.fallback is None
    assert "data:image/png" in (alone / "report.html").read_text()


def test_recorded_pictures_equal_those_of_the_workflow(alone, server, folder):
    """Every parsed rewrite has the picture that ComfyUI saves for it."""
    lines = rollouts(alone)
    assert len(lines) == STEPS * PROMPTS * REWRITES and {line["step"] for line in lines} == {1, 2, 3, 4, 5}
    assert all(bool(line["pictures"]) == ("rewrite" in line) for line in lines)
    drawn = jobs(alone)
    assert drawn.keys() == pictures(alone).keys() and len(drawn) > STEPS * PROMPTS
    for name, (prompt, seed) in list(drawn.items())[:: len(drawn) // 3]:
        graph = json.loads((folder / "flow.json").read_text())
        graph["2"]["inputs"]["text"], graph["5"]["inputs"]["seed"] = prompt, seed
        graph["7"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
        [image] = server.images(server.run(graph), "7")
        with Image.open(next(alone.glob(f"rollouts/pictures/*/{name}.png"))) as kept:
            assert np.array_equal(image, np.asarray(kept))


def test_a_killed_server_does_not_change_the_training(
    alone, server, folder, tmp_path_factory, draws, monkeypatch, caplog
):
    """SIGKILL in the middle of a picture: the run ends as the one of a single server, bit for bit."""
    second = Server(tmp_path_factory.mktemp("second"))
    waiting = client_module.ComfyUIClient._wait_for_run

    async def finished(self, name, run):
        if self.url == url(second) and len(draws) > len(jobs(alone)) // 2:
            second.process.kill()
        await waiting(self, name, run)

    monkeypatch.setattr(client_module.ComfyUIClient, "_wait_for_run", finished)
    try:
        second.wait()
        run = train(folder, "two", server, second)
        assert second.process.wait(10) == -9
    finally:
        second.stop()
    # The bodies of its last pictures were lost with it, and drawn by the other one: nothing else was.
    came, lost = ([row for row in draws if row[3] is ok] for ok in (True, False))
    assert sorted(row[1:3] for row in came) == sorted(map(list, jobs(alone).values()))
    assert 1 <= len(lost) <= JOBS_PER_SERVER and {row[0] for row in lost} == {url(second)}
    assert {row[0] for row in came} == {url(server), url(second)}  # both had their part
    assert f"{url(second)} is dropped" in caplog.text
    assert rollouts(run) == rollouts(alone) and pictures(run) == pictures(alone)
    first, other = weights(alone / "final"), weights(run / "final")
    assert first.keys() == other.keys() and all(first[name].equal(other[name]) for name in first)
