"""`reprise batch` on fake servers: pictures, journal, page, faults, going on."""

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from reprise.backend.batch.journal import PICTURES, QUEUED, RUNS, SCORES, Journal
from reprise.backend.core.registry import REWARDS
from reprise.backend.renderers.comfyui import pool

from ...fake_comfyui import GRAPH, FakeComfyUI, picture
from ..training import world

PROMPTS = ("a red cat", "a blue <b>dog</b>", "ein grünes Haus")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(pool, "LONGEST_PAUSE", 0.1)


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    for reward in (world.Redness, world.Blueness):
        monkeypatch.setitem(REWARDS, reward.spec.name, f"{world.__name__}:{reward.__name__}")


@pytest.fixture
def servers():
    made = []

    def make(**settings):
        made.append(FakeComfyUI(**settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def flow(tmp_path):
    (tmp_path / "flow.json").write_text(json.dumps(GRAPH))
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def rows(out):
    return [json.loads(line) for line in (out / RUNS).read_text().splitlines()]


def check(out, count):
    """Every picture is what a server draws for its line, is named readably, and holds its workflow."""
    found = rows(out)
    assert len(found) == count == len({row["run"] for row in found})
    names = {path.name for path in (out / PICTURES).iterdir()}
    assert names == {file["name"] for row in found for file in row["files"]}
    for row in found:
        [file] = row["files"]
        with Image.open(out / PICTURES / file["name"]) as image:
            graph = json.loads(image.info["prompt"])
            assert np.array_equal(np.asarray(image), picture(row.get("text", row["prompt"]), row["seed"]))
        assert graph["5"]["inputs"]["seed"] == row["seed"] and graph["7"]["class_type"] == "SaveImage"
    return found


def refused(result, *parts, code=2):
    assert result.code == code and len(result.err.strip().splitlines()) == 1, result.err
    assert all(part in result.err for part in parts), result.err


def test_a_set_on_two_servers(reprise, flow, servers):
    one, two = servers(delay=0.01), servers(delay=0.01)
    done = reprise(
        "batch", "flow.json", "--prompts", "p.txt", "--server", f"{one.url},{two.url}", "--seeds", 3,
        "--sweep", "cfg=2,3", "--out", "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = check(flow / "o", 18)
    assert one.runs and two.runs and len(one.runs) + len(two.runs) == 18
    assert {row["server"] for row in found} == {one.url, two.url}
    assert {row["settings"]["cfg"] for row in found} == {2.0, 3.0}
    assert any(file["name"].startswith("a-red-cat-cfg2.0-s1-") for row in found for file in row["files"])
    with open(flow / "o" / "runs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 18 and {row["prompt"] for row in table} == set(PROMPTS)
    assert "18 runs: 18 drawn" in done.out and "open o/index.html" in done.out
    again = reprise(
        "batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--seeds", 4, "--sweep", "cfg=2,3",
        "--out", "o",
    )  # fmt: skip
    assert again.code == 0 and "24 runs: 6 drawn, 18 kept" in again.out
    check(flow / "o", 24)


def test_the_page_shows_all_as_text(reprise, flow, servers):
    one = servers()
    hostile = "</script><img src=x onerror=alert(1)>"
    (flow / "p.csv").write_text(f'prompt,mood\n"{hostile}",<i>calm</i>\n=1+1,\n')
    done = reprise("batch", "flow.json", "--prompts", "p.csv", "--server", one.url, "--out", "o")
    assert done.code == 0 and "labels: mood" in done.err
    page = (flow / "o" / "index.html").read_text()
    assert hostile not in page and len(page) < 40_000 and "http" not in re.sub(r"http-equiv", "", page)
    files = flow / "o" / "index_files"
    [shown] = json.loads(
        re.fullmatch(r"reprise\.list\(0, (.+)\);\n", (files / "pictures-0.js").read_text(), re.DOTALL)[1]
    )[:1]
    assert shown[4] == hostile and shown[8] == {"mood": "<i>calm</i>"}
    state = json.loads(re.fullmatch(r"reprise\.state\((.+)\);\n", (files / "state.js").read_text())[1])
    assert (state["count"], state["running"], state["progress"]) == (2, False, "2 runs")
    assert len(list(files.glob("*.webp"))) == 2
    assert "'=1+1" in (flow / "o" / "runs.csv").read_text()  # no formula


def test_a_dry_run_asks_no_server(reprise, flow):
    done = reprise(
        "batch", "flow.json", "--prompts", "p.txt", "--seeds", 2, "--sweep", "steps=4,8", "--dry-run"
    )
    assert done.code == 0 and not (flow / "out").exists()
    assert "2.text" in done.out and "5.steps" in done.out and "4, 8" in done.out
    assert "12 runs on 1 server into out/flow-p-" in done.out and "not known before the first" in done.out


def test_judged_and_the_best_named(reprise, flow, servers):
    one = servers()
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--out", "o")
    assert reprise(*words, "--seeds", 2).code == 0
    judged = reprise(*words, "--best-of", 3, "--judge", "redness")
    assert judged.code == 0, judged.err
    assert "9 runs: 3 drawn, 6 kept, 9 pictures judged" in judged.out and len(one.runs) == 9
    found = check(flow / "o", 9)
    for row in found:
        [file] = row["files"]
        with Image.open(flow / "o" / PICTURES / file["name"]) as image:
            assert 0 <= file["score"] <= 1 and set(file["scores"]) == {"redness"} and image.size == (8, 8)
    assert len({file["score"] for row in found for file in row["files"]}) > 5
    before = (flow / "o" / SCORES).read_bytes()
    again = reprise(*words, "--best-of", 3, "--judge", "redness")
    assert again.code == 0 and "judged" not in again.out and (flow / "o" / SCORES).read_bytes() == before
    mixed = reprise(*words, "--seeds", 3, "--reward", "redness=2", "--reward", "blueness")
    assert mixed.code == 0 and "9 pictures judged" in mixed.out
    assert set(rows(flow / "o")[0]["files"][0]["scores"]) == {"redness", "blueness"} and len(one.runs) == 9


def test_rewritten_prompts_are_drawn_and_kept(reprise, flow, servers):
    one = servers()
    (flow / "p.txt").write_text("a red circle\na blue star\n")
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--out", "o", "--seeds", 2)
    done = reprise(*words, "--rewriter", "template", "--variants", 2)
    assert done.code == 0, done.err
    found = check(flow / "o", 4)
    assert {row["prompt"] for row in found} == {"a red circle", "a blue star"}
    assert all(row["text"] != row["prompt"] for row in found)
    again = reprise(*words, "--rewriter", "template", "--variants", 2)
    assert "4 runs: 4 kept" in again.out and len(one.runs) == 4


def test_several_outputs_and_a_video_are_kept(reprise, flow, servers):
    """What is only shown is left out, where the workflow saves something."""
    one = servers()
    with Image.new("RGB", (4, 4), "red") as image:
        image.save(flow / "red.png")
    one.files = {f"{name}.png": (flow / "red.png").read_bytes() for name in "ab"} | {"c.mp4": b"a video"}
    saved = [{"filename": f"{name}.png", "subfolder": "", "type": "output"} for name in "ab"]
    shown = [{"filename": "a.png", "subfolder": "", "type": "temp"}]
    video = [{"filename": "c.mp4", "subfolder": "", "type": "output"}]
    one.at_other_runs = lambda: [
        ("executed", {"node": "8", "output": {"images": shown}}),
        ("executed", {"node": "10", "output": {"gifs": video, "animated": [True]}}),
        ("executed", {"node": "7", "output": {"images": saved}}),
        ("execution_success", {}),
    ]
    words = ("batch", "flow.json", "--set", "prompt=a cat", "--server", one.url, "--out", "o")
    assert reprise(*words).code == 0
    [row] = rows(flow / "o")
    assert [file["node"] for file in row["files"]] == ["7", "7", "10"]
    assert [file["name"][-6:] for file in row["files"]] == ["-1.png", "-2.png", "-3.mp4"]
    assert (flow / "o" / PICTURES / row["files"][2]["name"]).read_bytes() == b"a video"
    judged = reprise(*words, "--judge", "redness")
    assert judged.code == 0 and "2 pictures judged" in judged.out, judged.err
    one.at_other_runs = lambda: [("execution_success", {})]
    done = reprise(*words, "--seed", 5, "--retries", 0)
    assert done.code == 1 and "the run saved nothing; add a Save Image node" in done.err


def test_a_picture_is_uploaded_once(reprise, flow, servers):
    one, two = servers(delay=0.02), servers(delay=0.02)
    graph = copy.deepcopy(GRAPH)
    graph["9"] = {"class_type": "LoadImage", "inputs": {"image": "old.png"}}
    (flow / "flow.json").write_text(json.dumps(graph))
    Image.new("RGB", (4, 4), "red").save(flow / "start.png")
    (flow / "p.csv").write_text("prompt,image\n" + "".join(f"cat {i},start.png\n" for i in range(8)))
    done = reprise(
        "batch", "flow.json", "--prompts", "p.csv", "--server", f"{one.url},{two.url}", "--out", "o"
    )
    assert done.code == 0, done.err
    for server in (one, two):
        [name] = server.uploads
        assert server.uploads[name] == (flow / "start.png").read_bytes() and name.startswith("reprise/")
        assert {graph["9"]["inputs"]["image"] for graph in server.graphs} == {name}
        assert len(server.posted("upload/image")) == 1


def test_a_server_without_the_model_is_left_out_and_that_is_said_once(reprise, flow, servers, caplog):
    poor, rich = servers(delay=0.01), servers(delay=0.01)
    fault = {"message": "Value not in list", "details": "ckpt_name: 'b.safetensors' not in ['a.safetensors']"}
    poor.refuses = lambda graph: (
        {"error": {"message": "failed"}, "node_errors": {"1": {"errors": [fault]}}}
        if graph["1"]["inputs"]["ckpt_name"] == "b.safetensors"
        else None
    )
    done = reprise(
        "batch", "flow.json", "--prompts", "p.txt", "--server", f"{poor.url},{rich.url}", "--seeds", 2,
        "--sweep", "model=a.safetensors,b.safetensors", "--out", "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    check(flow / "o", 12)
    by = {row["server"] for row in rows(flow / "o") if row["settings"]["model"] == "b.safetensors"}
    assert by == {rich.url} and poor.runs
    assert (
        caplog.text.count("left out for some of the pictures") == 1
        and "'b.safetensors' not in" in caplog.text
    )


def test_what_all_servers_refuse_is_passed_over_and_tried_again(reprise, flow, servers):
    one = servers()
    refusal = {"error": {"message": "no"}, "node_errors": {"1": {"errors": [{"message": "not in list"}]}}}
    one.refuses = lambda graph: refusal if graph["1"]["inputs"]["ckpt_name"] == "b" else None
    words = (
        "batch",
        "flow.json",
        "--prompts",
        "p.txt",
        "--server",
        one.url,
        "--sweep",
        "model=a,b",
        "--out",
        "o",
    )
    done = reprise(*words)
    assert done.code == 1 and "3 of 6 runs failed, the rest is in o" in done.err and "not in list" in done.err
    assert done.err.count("passed over: ") == 1
    check(flow / "o", 3)
    one.refuses = None
    assert reprise(*words).code == 0
    check(flow / "o", 6)


def test_a_workflow_that_every_server_refuses_ends_the_command(reprise, flow, servers):
    one = servers()
    one.refuses = lambda graph: {"error": {"message": "Node 'Sharpen' not found."}, "node_errors": {}}
    done = reprise(
        "batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--seeds", 40, "--out", "o"
    )
    assert done.code == 2 and "Node 'Sharpen' not found." in done.err.splitlines()[-1] and not one.runs


def test_the_token_goes_to_named_hosts_only(reprise, flow, servers, monkeypatch):
    from reprise.backend.net import credentials

    one = servers()
    one.token = "secret-7"
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--out", "o", "--retries", 0)
    monkeypatch.setattr(pool, "FIRST_PATIENCE", 0.3)
    done = reprise(*words)
    assert done.code == 1 and "set REPRISE_COMFYUI_TOKEN in the environment" in done.err
    monkeypatch.setenv("REPRISE_COMFYUI_TOKEN", "secret-7")
    monkeypatch.setattr(credentials, "is_local", lambda host: False)
    done = reprise(*words)
    assert done.code == 1 and "REPRISE_COMFYUI_HOSTS does not name this address" in done.err
    monkeypatch.setenv("REPRISE_COMFYUI_HOSTS", one.url)
    done = reprise(*words)
    assert done.code == 0, done.err
    check(flow / "o", 3)
    assert not [
        path for path in (flow / "o").rglob("*") if path.is_file() and b"secret-7" in path.read_bytes()
    ]


def test_a_server_behind_a_path_with_a_header(reprise, flow, servers, monkeypatch):
    one = servers()
    one.path, one.header, one.token = "/studio/comfy", "X-Api-Key", "k-1"
    monkeypatch.setattr(pool, "FIRST_PATIENCE", 0.3)
    monkeypatch.setenv("REPRISE_COMFYUI_TOKEN", "k-1")
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--out", "o")
    assert reprise(*words).code == 1  # as a bearer token
    monkeypatch.setenv("REPRISE_COMFYUI_HEADER", "X-Api-Key")
    done = reprise(*words)
    assert done.code == 0, done.err
    check(flow / "o", 3)
    monkeypatch.setenv("REPRISE_COMFYUI_HEADER", "X Api: Key")
    refused(reprise(*words, "--seed", 4), "REPRISE_COMFYUI_HEADER is no header's name")


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "reprise", "batch", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_command_goes_on(reprise, flow, servers, number):
    """Of a killed one also with what it had left on the servers: nothing is drawn twice."""
    both = [servers(delay=0.1), servers(delay=0.1)]
    urls = ",".join(one.url for one in both)
    words = ("flow.json", "--prompts", "p.txt", "--seeds", 6, "--server", urls, "--out", "o")
    process = start(*words, cwd=flow)
    wait_for(lambda: (flow / "o" / RUNS).exists() and len((flow / "o" / RUNS).read_text().splitlines()) > 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    before = sum(len(one.runs) for one in both)
    assert 4 <= before < 18
    if number == signal.SIGINT:
        assert process.returncode == 130 and "the same command with --out o goes on" in said
        wait_for(lambda: not any(one.running or one.pending for one in both))
        before = sum(len(one.runs) for one in both)
    kept = {path: path.stat().st_mtime_ns for path in (flow / "o" / PICTURES).glob("*.png")}
    done = reprise("batch", *words)
    assert done.code == 0, done.err
    assert not list((flow / "o").rglob("*.part"))
    check(flow / "o", 18)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    drawn = [run for one in both for run in one.runs]
    if number == signal.SIGKILL:
        assert len(drawn) == 18 == len(set(drawn))
    else:  # what was interrupted in the middle is drawn again
        assert len(set(drawn)) == 18 and len(drawn) <= 18 + len(both) * 2


def test_ctrl_c_between_the_files_of_a_run_and_its_line(reprise, flow, servers, monkeypatch):
    """The run is finished all the same: every picture has its line, and nothing is drawn again."""
    server, finish = servers(), Journal.finish

    def interrupted(self, row):
        monkeypatch.setattr(Journal, "finish", finish)
        raise KeyboardInterrupt

    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", server.url, "--out", "o")
    monkeypatch.setattr(Journal, "finish", interrupted)
    assert reprise(*words).code == 130
    lines = (flow / "o" / RUNS).read_text().splitlines()
    named = [file["name"] for line in lines for file in json.loads(line)["files"]]
    assert named and sorted(named) == sorted(path.name for path in (flow / "o" / PICTURES).glob("*.png"))
    assert reprise(*words).code == 0
    assert len(server.runs) == len(set(server.runs))


def test_a_server_that_dies_and_comes_back(reprise, flow, servers):
    one, two = servers(delay=0.02), servers(delay=0.02)

    def restart():
        one.stop()
        time.sleep(0.1)
        one.start()

    one.at_run[2] = restart
    done = reprise(
        "batch",
        "flow.json",
        "--prompts",
        "p.txt",
        "--server",
        f"{one.url},{two.url}",
        "--seeds",
        8,
        "--out",
        "o",
    )
    assert done.code == 0, done.err
    check(flow / "o", 24)


def test_damaged_files_are_drawn_again(reprise, flow, servers):
    one = servers()
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url, "--out", "o")
    assert reprise(*words).code == 0
    first, second, _ = sorted((flow / "o" / PICTURES).iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-20])
    second.unlink()
    with open(flow / "o" / RUNS, "a") as file:
        file.write('{"run": "half')
    with open(flow / "o" / QUEUED, "a") as file:
        file.write('{"ru')
    again = reprise(*words)
    assert again.code == 0 and "drawn again: the files of 2 runs" in again.err
    assert "2 drawn, 1 kept" in again.out and first.read_bytes() == whole
    check(flow / "o", 3)


def test_a_changed_workflow_is_another_set(reprise, flow, servers):
    one = servers()
    words = ("batch", "flow.json", "--prompts", "p.txt", "--server", one.url)
    assert reprise(*words, "--out", "o").code == 0 and reprise(*words).code == 0
    graph = copy.deepcopy(GRAPH)
    graph["5"]["inputs"]["cfg"] = 2.0
    (flow / "flow.json").write_text(json.dumps(graph))
    refused(
        reprise(*words, "--out", "o"), "o holds the pictures of another workflow, or flow.json has changed"
    )
    assert reprise(*words).code == 0 and len(list((flow / "out").iterdir())) == 2


@pytest.mark.parametrize(
    "words,parts",
    [
        (["gone.json"], ["cannot read the workflow gone.json"]),
        (["flow.json,promt=2.text"], ["did you mean 'prompt'"]),
        (["flow.json", "--prompts", "gone.csv"], ["cannot read the prompt file gone.csv"]),
        (["flow.json", "--server", "ftp://a"], ["an address such as", "'ftp://a'"]),
        (["flow.json", "--server", "http://me:pw@a"], ["without a user"]),
        (["flow.json", "--best-of", "4"], ["--best-of needs a --judge"]),
        (["flow.json", "--best-of", "4", "--seeds", "2", "--judge", "redness"], ["give one of them"]),
        (["flow.json", "--random", "3"], ["values of --sweep"]),
        (["flow.json", "--judge", "rednes"], ["did you mean 'redness'"]),
        (["flow.json", "--rewriter", "templat"], ["did you mean 'template'"]),
        (["flow.json", "--wildcards", "gone"], ["no folder of wildcards gone"]),
        (["flow.json", "--set", "steps=x"], ["--set steps: 5.steps (KSampler) takes a whole number"]),
        (["flow.json", "--seeds", "0"], ["--seeds must be 1 to 4096, got 0"]),
    ],
)
def test_bad_input_is_one_line(reprise, flow, words, parts):
    refused(reprise("batch", *words), *parts)
    assert sorted(path.name for path in flow.iterdir()) == ["flow.json", "p.txt"]


def test_foreign_files_stay(reprise, flow, servers):
    one = servers()
    (flow / "o").mkdir()
    (flow / "o" / "runs.jsonl").write_text("mine\n")
    refused(
        reprise("batch", "flow.json", "--server", one.url, "--out", "o"),
        "o/runs.jsonl was not made by this command",
    )
    assert (flow / "o" / "runs.jsonl").read_text() == "mine\n" and not one.runs
    assert os.listdir(flow / "o") == ["runs.jsonl"]
