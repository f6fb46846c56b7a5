"""The pack in a real ComfyUI server, through its HTTP API."""

import json
import re

import numpy as np
import pytest

from reprise.backend.rewards.shapeworld import is_right
from reprise.backend.shapeworld.detector import read_scene
from reprise.backend.shapeworld.prompts import parse_prompt

from .conftest import ROOT, error_of

pytestmark = pytest.mark.comfyui
SOCKETS = ROOT / "tests" / "data" / "sockets.json"
IDS = {
    "RepriseRewriter",
    "RepriseRewardScorer",
    "RepriseParmBestOfN",
    "RepriseParmBestOfNAdvanced",
    "RepriseLoadRewriter",
    "RepriseLoadJudge",
    "RepriseLoadShapeWorld",
    "RepriseReflectionLoop",
    "RepriseReflectionStep",
    "RepriseRefiner",
    "RepriseDescribe",
    "RepriseLoadRefiner",
    "RepriseEndpointRewriter",
    "RepriseClipRewriter",
}


def test_the_pack_loads_without_a_warning(server):
    log = server.log.read_text(errors="replace").split("got prompt")[0]  # other tests make nodes fail
    assert "IMPORT FAILED" not in log
    lines = [line for line in log.splitlines() if "reprise" in line.lower()]
    assert not [line for line in lines if re.search(r"warn|error|traceback", line, re.IGNORECASE)], lines
    assert any(re.search(r"[\d.]+ seconds", line) for line in lines)  # how long: `reprise lab bench nodes`


def test_every_node_has_an_id_and_help_texts(server):
    known = server.http.get("/object_info").json()
    ours = {name: info for name, info in known.items() if name.startswith("Reprise")}
    assert set(ours) == IDS  # saved workflows name them: they never change
    for name, info in ours.items():
        assert info["category"].startswith("Reprise") and info["display_name"] and info["description"], name


def test_sockets_of_earlier_versions_are_unchanged(server):
    """`tests/data/sockets.json` has what workflows were saved with: names in order, of required inputs, of
    optional ones and of outputs. New ones come last and are optional, so that older files still run."""
    known = server.http.get("/object_info").json()
    for name, kinds in json.loads(SOCKETS.read_text(encoding="utf-8")).items():
        now = {**known[name]["input_order"], "outputs": known[name]["output_name"]}
        assert now.get("required", []) == kinds["required"], name
        for kind in ("optional", "outputs"):
            assert now.get(kind, [])[: len(kinds[kind])] == kinds[kind], (name, kind)


def test_parm_prunes_clear_previews_by_potential(server, graph):
    """The embedded judge says which previews are clear and which of them have no hope; a low threshold keeps
    more, and another judge may look at previews in its place."""
    nodes = graph("shapeworld_quick_start")
    (loader,) = [key for key, node in nodes.items() if node["class_type"] == "RepriseLoadJudge"]
    nodes[loader]["inputs"]["judge"] = "vlm: embedded#critique"
    nodes = _with(nodes, "8", prune="potential", candidates=6, seed=31)

    def report(nodes):
        (told,) = server.run(nodes)["outputs"]["8"]["reprise_parm"]
        return told

    strict = report(_with(nodes, "8", potential=1.0))  # of those that are clear one goes on
    assert strict["judge"] == "vlm:embedded" and 0 <= strict["low"] < strict["high"] <= 1
    looks = [look for c in strict["candidates"] for look in c["preview_clarity"].items()]
    assert looks and all(0 <= likely <= 1 for _, likely in looks)
    for c in strict["candidates"]:
        clear = {step for step, likely in c["preview_clarity"].items() if likely >= 0.5}
        assert set(c["preview_scores"]) == clear, "unclear previews are not judged"
    gentle = report(_with(nodes, "8", potential=0.0))
    assert all(c["pruned_at"] is None for c in gentle["candidates"])
    assert strict["cost"]["denoiser_rows"] < gentle["cost"]["denoiser_rows"]
    nodes["90"] = {"class_type": "RepriseLoadJudge", "inputs": {"judge": "shapeworld"}}
    halved = report(_with(nodes, "8", prune="halving", preview_judge=["90", 0]))
    assert not any(c["preview_clarity"] for c in halved["candidates"])
    assert sum(c["pruned_at"] is not None for c in halved["candidates"]) >= 3


def test_a_graph_of_an_older_version_runs_or_names_what_is_missing(server, graph):
    nodes = _with(graph("shapeworld_quick_start"), "8", threshold=0.5)  # an option that is gone
    for optional in ("locked_prompt", "critique"):  # as before there were any
        del nodes["4"]["inputs"][optional]
    assert server.run(nodes)["status"]["status_str"] == "success"
    for changed, says in (({"prune": "keep half"}, "keep half"), ({"seed": None}, "seed")):
        answer = server.queue(_with(nodes, "8", **changed))
        assert answer.status_code == 400 and says in json.dumps(answer.json()["node_errors"]["8"])
    del nodes["8"]["inputs"]["candidates"]
    answer = server.queue(nodes)
    assert answer.status_code == 400 and "candidates" in json.dumps(answer.json()["node_errors"]["8"])


def test_the_quick_start_draws_scores_and_reports(server, graph):
    entry = server.run(graph("shapeworld_quick_start"))
    assert entry["status"]["status_str"] == "success", entry["status"]
    (picture,) = server.images(entry, "9")
    assert picture.shape == (128, 128, 3)
    reading = read_scene(picture)
    assert reading.detections and all(d.color == "red" for d in reading.detections)
    (report,) = entry["outputs"]["8"]["reprise_parm"]
    assert len(report["candidates"]) == 8
    assert report["cost"]["denoiser_rows"] < report["cost"]["denoiser_rows_full"]
    (rewrite,) = entry["outputs"]["4"]["reprise_rewrite"]
    assert rewrite["fallbacks"] == [None] and rewrite["reasons"][0] and "red" in rewrite["prompts"][0]
    (scores,) = entry["outputs"]["10"]["reprise_scores"]
    finished = [c["score"] for c in report["candidates"] if c["score"] is not None]
    assert scores["scores"] == pytest.approx(sorted(finished, reverse=True))


@pytest.mark.parametrize(
    "name, node, pictures",
    [
        ("shapeworld_quick_start", "8", "9"),
        ("rewrite_and_score", "10", "16"),
        ("reflection_loop", "8", "9"),
    ],
)
def test_most_pictures_of_the_shipped_graphs_are_right(server, graph, name, node, pictures):
    """By the detector itself, not by the scores that the graph reports."""
    nodes = graph(name)
    words = nodes["4"]["inputs"]
    case, seen = parse_prompt(words.get("prompt") or words["value"]), []
    for seed in (1, 101, 201, 301):
        entry = server.run(_with(nodes, node, seed=seed))
        assert entry["status"]["status_str"] == "success", entry["status"]
        seen += [is_right(case, read_scene(picture)) for picture in server.images(entry, pictures)]
    assert sum(seen) > len(seen) / 2, seen


def test_the_winners_seed_in_a_plain_ksampler_draws_the_same_picture(server, graph):
    nodes = graph("shapeworld_quick_start")
    del nodes["10"]
    entry = server.run(nodes)
    (best,) = server.images(entry, "9")
    (report,) = entry["outputs"]["8"]["reprise_parm"]
    plain = {key: nodes[key] for key in ("1", "2", "4", "5", "6", "7")}
    kept = "model steps cfg sampler_name scheduler positive negative latent_image denoise".split()
    inputs = {key: nodes["8"]["inputs"][key] for key in kept}
    plain["8"] = {"class_type": "KSampler", "inputs": {**inputs, "seed": report["seed"]}}
    plain["20"] = {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}}
    plain["9"] = {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": "plain"}}
    (alone,) = server.images(server.run(plain), "9")
    assert np.abs(best.astype(int) - alone).max() <= 1  # another batch shape rounds another way


def test_the_embedded_refiner_adds_what_its_renderer_draws(server, graph):
    """The example as it is: the refined prompt begins with the user's, and its picture is another."""
    nodes = graph("prip_refiner")
    nodes["20"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}}
    entry = server.run(nodes)
    (refined,) = entry["outputs"]["20"]["text"]
    assert refined.startswith(nodes["4"]["inputs"]["value"] + " ")
    assert not np.array_equal(server.images(entry, "16")[0], server.images(entry, "17")[0])


def test_a_locked_text_needs_no_model_and_is_used(server):
    nodes = {
        "1": {
            "class_type": "RepriseRewriter",
            "inputs": {
                "prompt": "x",
                "variants": 1,
                "seed": 0,
                "locked": True,
                "locked_prompt": "my own words",
                "critique": "",
            },
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    entry = server.run(nodes)
    assert entry["outputs"]["2"]["text"] == ["my own words"]


@pytest.mark.parametrize("correction", ["draw again", "image to image"])
def test_the_reflection_loop_corrects_and_returns_the_best(server, graph, correction):
    nodes = _with(graph("reflection_loop"), "8", correction=correction)
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    history = json.loads(entry["outputs"]["10"]["text"][0])
    assert 1 <= len(history) <= 4 and [r["round"] for r in history] == list(range(len(history)))
    assert [r["seed"] for r in history] == [7 + r["round"] for r in history]
    # It stops at the first satisfied verdict, and each "no" says what is wrong.
    assert all(r["verdict"] == "no" and r["critique"] for r in history[:-1])
    assert history[-1]["verdict"] == "yes" or len(history) == 4
    assert len(server.images(entry, "11")) == len(history)
    best = max(history, key=lambda r: (r["score"], -r["round"]))
    assert entry["outputs"]["12"]["text"] == [best["prompt"]]
    (picture,) = server.images(entry, "9")
    assert np.array_equal(picture, server.images(entry, "11")[best["round"]])


@pytest.mark.parametrize("correction", ["draw again", "image to image"])
def test_the_reflection_loop_leaves_masked_pixels_unchanged(server, graph, correction):
    """Inpainting: no round may change the right half of a blue picture; and with denoise .5
    much of the left one stays, too."""
    nodes = _with(graph("reflection_loop"), "8", correction=correction, latent_image=["25", 0], rounds=2)
    nodes |= {
        "21": {
            "class_type": "EmptyImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 0x2040C0},
        },
        "22": {"class_type": "VAEEncode", "inputs": {"pixels": ["21", 0], "vae": ["1", 2]}},
        "23": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}},
        "24": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["23", 0], "source": ["26", 0], "x": 0, "y": 0, "operation": "add"},
        },
        "25": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["22", 0], "mask": ["24", 0]}},
        "26": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}},
        "27": {"class_type": "VAEDecode", "inputs": {"samples": ["22", 0], "vae": ["1", 2]}},
        "28": {"class_type": "PreviewImage", "inputs": {"images": ["27", 0]}},
    }
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (blue,), rounds = server.images(entry, "28"), server.images(entry, "11")
    assert len(rounds) == 3, "half a picture never satisfies the judge"
    change = [np.abs(picture.astype(float) - blue).mean((0, 2)) for picture in rounds]
    assert all(one[72:].mean() < 6 and one[:56].mean() > 12 for one in change), change
    fewer = server.images(server.run(_with(nodes, "8", denoise=0.3, rounds=0)), "11")
    less = np.abs(fewer[0].astype(float) - blue).mean((0, 2))
    assert less[:56].mean() < change[0][:56].mean() / 2, "denoise below 1 starts from the latent"


def test_a_trained_judge_criticises_in_the_loop(server, graph):
    """PARM++ with a trained judge: its critiques reach the rewriter and the record."""
    nodes = graph("reflection_loop")
    (loader,) = [key for key, node in nodes.items() if node["class_type"] == "RepriseLoadJudge"]
    nodes[loader]["inputs"]["judge"] = "vlm: embedded#critique"
    for seed in range(20, 28):  # it is wrong about one picture in eight, and may be satisfied by the first
        entry = server.run(_with(nodes, "8", rounds=1, seed=seed))
        assert entry["status"]["status_str"] == "success", entry["status"]
        history = json.loads(entry["outputs"]["10"]["text"][0])
        if len(history) == 2:
            break
    first, second = history
    assert first["verdict"] == "no" and first["critique"] and first["prompt"] != second["prompt"]
    assert len(server.images(entry, "11")) == 2


def test_reflection_refuses_a_batch_and_an_empty_prompt(server, graph):
    nodes = graph("reflection_loop")
    assert "batch of 1" in error_of(server.run(_with(nodes, "7", batch_size=2)))["exception_message"]
    assert "is empty" in error_of(server.run(_with(nodes, "8", prompt=" ")))["exception_message"]


def _with(nodes: dict, node: str, **inputs) -> dict:
    changed = json.loads(json.dumps(nodes))
    changed[node]["inputs"].update(inputs)
    return changed


@pytest.mark.parametrize(
    "node, inputs, says",
    [
        ("8", {"prompt": "  "}, "the prompt is empty"),
        ("4", {"prompt": ""}, "the prompt is empty"),
        ("4", {"locked": True}, "the prompt is empty"),
        ("8", {"sampler_name": "dpm_adaptive"}, "choose another sampler"),
        ("8", {"preview": "TAESD"}, "vae_approx"),
        ("7", {"batch_size": 3}, "expected a latent batch of 1"),
        ("8", {"denoise": 0.0}, "expected at least 1 step to sample"),
    ],
)
def test_bad_input_is_reported_on_the_node_and_the_server_continues(server, graph, node, inputs, says):
    entry = server.run(_with(graph("shapeworld_quick_start"), node, **inputs))
    error = error_of(entry)
    assert says in error["exception_message"], error["exception_message"]
    assert error["node_id"] == ("8" if node == "7" else node)
    assert server.http.get("/system_stats").status_code == 200


@pytest.mark.parametrize("node, inputs", [("8", {"candidates": 0}), ("3", {"judge": "nobody"})])
def test_impossible_values_are_refused_before_the_run(server, graph, node, inputs):
    answer = server.queue(_with(graph("shapeworld_quick_start"), node, **inputs))
    assert answer.status_code == 400 and node in answer.json()["node_errors"]


def test_a_missing_judge_is_refused_before_the_run(server, graph):
    nodes = graph("shapeworld_quick_start")
    del nodes["8"]["inputs"]["judge"]
    answer = server.queue(nodes)
    assert answer.status_code == 400 and "judge" in json.dumps(answer.json()["node_errors"]["8"])


def test_an_interrupt_stops_within_a_step(server, graph):
    import time

    nodes = _with(graph("shapeworld_quick_start"), "8", steps=4000, seed=11, prune="none")
    prompt_id = server.queue(nodes).json()["prompt_id"]
    while not server.http.get("/queue").json()["queue_running"]:
        time.sleep(0.05)
    time.sleep(4)
    server.http.post("/interrupt")
    started = time.monotonic()
    entry = server.result(prompt_id, 60)
    assert entry["status"]["status_str"] == "error"
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert time.monotonic() - started < 30


def test_a_reflection_step_by_hand_is_refused_before_it_reads_anything(server, graph):
    nodes = graph("reflection_loop")
    nodes["90"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    }
    nodes["8"]["class_type"] = "RepriseReflectionStep"
    nodes["8"]["inputs"] |= {"image": ["90", 0], "history": "[" * 100_000, "report": "x"}
    error = error_of(server.run(nodes))
    assert error["node_id"] == "8" and "put a Reflection Loop in its place" in error["exception_message"]
