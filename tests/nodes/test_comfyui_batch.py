"""`reprise batch` against real ComfyUI servers."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from reprise.backend.batch.journal import PICTURES, RUNS

from .conftest import ROOT, Server
from .test_comfyui_renderer import GRAPH, PROMPTS, url

pytestmark = pytest.mark.comfyui
COLORS, SHAPES = ("red", "blue", "green", "yellow"), ("circle", "star", "heart", "square", "ring")


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "reprise", "batch", *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)} if ROOT.name == "reprise" else None,
    )


def finish(process, seconds=300):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return out


def rows(out):
    return [json.loads(line) for line in (out / RUNS).read_text().splitlines()]


def pixels(out):
    """Run -> its picture."""
    found = {}
    for row in rows(out):
        [file] = row["files"]
        with Image.open(out / PICTURES / file["name"]) as image:
            found[row["run"]] = np.asarray(image)
    return found


def histories(*servers):
    """(prompt, seed) of all runs that servers have finished."""
    graphs = [
        entry["prompt"][2]
        for server in servers
        for entry in server.http.get("/history").json().values()
        if entry["status"]["status_str"] == "success" and "7" in entry["prompt"][2]
    ]
    return [(graph["2"]["inputs"]["text"], graph["5"]["inputs"]["seed"]) for graph in graphs]


def test_a_set_and_the_picture_as_its_own_workflow(server, tmp_path):
    """The pictures are those of the graph, hold it, and are a workflow themselves."""
    (tmp_path / "flow.json").write_text(json.dumps(GRAPH))
    (tmp_path / "p.csv").write_text("prompt,steps\n" + "".join(f"{text},2\n" for text in PROMPTS[:2]))
    words = ("--server", url(server), "--out", "o")
    finish(start(tmp_path, "flow.json", "--prompts", "p.csv", "--judge", "shapeworld", "--seeds", 2, *words))
    found = rows(tmp_path / "o")
    assert len(found) == 4 and all(0 <= file["score"] <= 1 for row in found for file in row["files"])
    path = tmp_path / "o" / PICTURES / found[0]["files"][0]["name"]
    with Image.open(path) as image:
        graph = json.loads(image.info["prompt"])
    assert graph["2"]["inputs"]["text"] == found[0]["prompt"] and graph["5"]["inputs"]["steps"] == 2
    graph["7"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    [drawn] = server.images(server.run(graph), "7")
    assert np.array_equal(drawn, pixels(tmp_path / "o")[found[0]["run"]])
    finish(start(tmp_path, path, "--server", url(server), "--out", "again"))
    [again] = pixels(tmp_path / "again").values()
    assert np.array_equal(again, drawn)


@pytest.mark.long
def test_killed_servers_and_commands(tmp_path, tmp_path_factory):
    """One server is killed and brought back, the command is killed twice: each picture is drawn once, but for
    those that were on the killed server, and equals that of a run without faults."""
    count = int(os.environ.get("BATCH_RUNS", "200"))
    both = [Server(tmp_path_factory.mktemp(f"server{i}")) for i in range(2)]
    try:
        for one in both:
            one.wait()
        (tmp_path / "flow.json").write_text(json.dumps(GRAPH))
        prompts = [f"a photo of a {color} {shape}" for color in COLORS for shape in SHAPES]
        lines = [f'"{prompts[i % len(prompts)]}",{1000 + i},2' for i in range(count)]
        (tmp_path / "p.csv").write_text("prompt,seed,steps\n" + "\n".join(lines) + "\n")
        urls = ",".join(map(url, both))
        words = ("flow.json", "--prompts", "p.csv", "--server", urls, "--out", "o")

        def reached(number):
            end = time.monotonic() + 600
            while not (path := tmp_path / "o" / RUNS).exists() or len(path.read_text().splitlines()) < number:
                assert time.monotonic() < end
                time.sleep(0.05)

        for share in (0.2, 0.5):
            process = start(tmp_path, *words)
            reached(int(share * count))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        process = start(tmp_path, *words)
        reached(int(0.6 * count))
        before = histories(both[1])
        both[1].process.kill()
        both[1].process.wait()
        reached(int(0.7 * count))
        back = Server(tmp_path_factory.mktemp("back"), port=both[1].port)
        both.append(back)
        back.wait()
        finish(process, 1200)
        drawn = before + histories(both[0], back)
        found = pixels(tmp_path / "o")
        assert len(found) == count == len(set(drawn))
        # What the killed server had finished while nobody had fetched it yet is lost with its history.
        assert len(drawn) - len(set(drawn)) <= 2, sorted(drawn)
        finish(start(tmp_path, "flow.json", *words[1:-1], "alone"), 1200)
        alone = pixels(tmp_path / "alone")
        assert alone.keys() == found.keys()
        assert all(np.array_equal(alone[run], picture) for run, picture in found.items())
    finally:
        for one in both:
            one.stop()
