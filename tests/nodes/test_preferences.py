"""Preferences from the history of a real ComfyUI."""

import pytest

from reprise.backend.preferences.history import read_history
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Store

pytestmark = pytest.mark.comfyui


def test_a_search_in_a_graph_gives_pairs(server, graph, tmp_path):
    nodes = graph("shapeworld_quick_start")
    nodes["8"]["inputs"] |= {"prune": "none", "candidates": 4, "steps": 6, "seed": 41}
    nodes["20"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 2]}}
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (report,) = entry["outputs"]["8"]["reprise_parm"]
    (rewrite,) = entry["outputs"]["4"]["reprise_rewrite"]
    mined = PairMiner(Store(tmp_path / "store", create=True), margin=0.0)
    for group in read_history(f"http://127.0.0.1:{server.port}", print):
        mined.add_group(group)
    ours = [pair for pair in mined.pairs if pair.chosen.seed in range(41, 45)]
    scores = {one["seed"]: one["score"] for one in report["candidates"]}
    best, worst = max(scores, key=scores.get), min(scores, key=scores.get)
    assert [(pair.chosen.seed, pair.rejected.seed) for pair in ours] == [(best, worst)]
    (pair,) = ours
    assert pair.prompt == "a photo of two red squares" and pair.condition == rewrite["prompts"][0]
    first, *_ = server.images(entry, "20")
    kept = mined.store.image(pair.chosen.image)
    assert (kept * 255).round().byte().numpy().tolist() == first.tolist()


def test_a_reflection_loop_gives_pairs(server, graph, tmp_path):
    nodes = graph("reflection_loop")
    nodes["4"]["inputs"]["value"] = "a photo of a blue star left of a green diamond"
    nodes["8"]["inputs"] |= {"rounds": 2, "steps": 4, "seed": 83}
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (report,) = entry["outputs"]["8"]["reprise_reflection"]
    rounds = {one["seed"]: one for one in report["rounds"]}
    mined = PairMiner(Store(tmp_path / "store", create=True), by="prompt", margin=0.0)
    notes = []
    for group in read_history(f"http://127.0.0.1:{server.port}", notes.append):
        if group.prompt == nodes["4"]["inputs"]["value"]:
            mined.add_group(group)
    assert len(rounds) > 1 and mined.counts["groups"] == 1, (
        "the reports of the expansion's nodes are not counted"
    )
    (pair,) = mined.pairs
    best, worst = max(rounds, key=lambda seed: rounds[seed]["score"]), pair.rejected.seed
    assert pair.chosen.seed == best and rounds[worst]["score"] == min(one["score"] for one in rounds.values())
    assert pair.chosen.drawn_as == rounds[best]["prompt"]
    shown = server.images(entry, "11")
    kept = mined.store.image(pair.chosen.image)
    assert (kept * 255).round().byte().numpy().tolist() == shown[best - 83].tolist()
