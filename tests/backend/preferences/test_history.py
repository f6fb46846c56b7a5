"""Pairs from a ComfyUI server's history."""

import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from PIL import Image

from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.history import read_history
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Store

from ...fake_endpoint import closed_url
from ...servers import QuietServer

GRAPH = {
    "4": {"class_type": "RepriseRewriter", "inputs": {"prompt": "a cat", "rewriter": ["2", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": ["4", 0], "clip": ["1", 1]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    "8": {
        "class_type": "RepriseParmBestOfN",
        "inputs": {
            "model": ["1", 0],
            "seed": 7,
            "positive": ["5", 0],
            "negative": ["6", 0],
            "latent_image": ["7", 0],
            "vae": ["1", 2],
            "judge": ["3", 0],
            "prompt": "a cat",
            "candidates": 4,
        },
    },
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "best"}},
    "10": {"class_type": "PreviewImage", "inputs": {"images": ["8", 2]}},
    **{name: {"class_type": "Loader", "inputs": {}} for name in "1237"},
}


def report(scores, **changes):
    return {
        "judge": "shapeworld",
        "higher_is_better": True,
        "low": 0.0,
        "high": 1.0,
        "best": 0,
        "seed": 7,
        "candidates": [{"index": i, "seed": 7 + i, "score": score} for i, score in enumerate(scores)],
        **changes,
    }


def files(*names):
    return [{"filename": name, "subfolder": "", "type": "temp"} for name in names]


def shown(prompts, reports, names):
    return {
        "4": {"reprise_rewrite": [{"prompts": prompts, "reasons": ["Why."] * len(prompts)}]},
        "8": {"reprise_parm": reports},
        "9": {"images": files("best.png")},
        "10": {"images": files(*names)},
    }


@pytest.fixture
def server():
    """A server with a history and grey pictures that a test sets."""

    class Handler(BaseHTTPRequestHandler):
        history, pictures = {}, {}

        def do_GET(self):
            url = urlsplit(self.path)
            if url.path == "/history":
                body = json.dumps(Handler.history).encode()
            else:
                name = parse_qs(url.query).get("filename", [""])[0]
                if name not in Handler.pictures:
                    return self.send_error(404)
                file = io.BytesIO()
                Image.new("L", (8, 8), Handler.pictures[name]).save(file, "PNG")
                body = file.getvalue()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{running.server_port}"
    yield Handler
    running.shutdown()
    running.server_close()


@pytest.fixture
def mined(server, tmp_path):
    def mine(graph, outputs, pictures, **options):
        server.history, server.pictures = {"run": {"prompt": [0, "run", graph], "outputs": outputs}}, pictures
        found = PairMiner(Store(tmp_path / "store", create=True), **options)
        found.notes = []
        for group in read_history(server.url, found.notes.append):
            found.add_group(group)
        return found

    return mine


def test_candidates_of_a_search_pair_under_their_rewrite(mined):
    """Two candidates were pruned; the pictures come best first."""
    outputs = shown(["a large cat"], [report([0.2, None, 0.9, None, 0.5])], ["x.png", "y.png", "z.png"])
    found = mined(GRAPH, outputs, {"x.png": 255, "y.png": 100, "z.png": 0})
    [pair] = found.pairs
    assert (pair.prompt, pair.condition, pair.source) == ("a cat", "a large cat", "comfyui")
    assert (pair.chosen.seed, pair.rejected.seed, pair.margin) == (9, 7, pytest.approx(0.7))
    assert torch.equal(found.store.image(pair.chosen.image), torch.ones(8, 8, 3))
    assert torch.equal(found.store.image(pair.rejected.image), torch.zeros(8, 8, 3))
    assert found.rewrites == []


def test_several_rewrites_are_read_as_several_searches(mined):
    outputs = shown(
        ["a large cat", "a cat, low"],
        [report([0.2, 0.9]), report([0.1, 0.3])],
        ["a.png", "b.png", "c.png", "d.png"],
    )
    pictures = {name: i * 60 for i, name in enumerate(["a.png", "b.png", "c.png", "d.png"])}
    found = mined(GRAPH, outputs, pictures)
    assert [(p.condition, p.chosen.score, p.rejected.score) for p in found.pairs] == [
        ("a large cat", 0.9, 0.2),
        ("a cat, low", 0.3, 0.1),
    ]
    [texts] = found.rewrites
    assert (texts.chosen.rewrite, texts.rejected.rewrite) == ("a large cat", "a cat, low")
    assert mined(GRAPH, outputs, pictures, by="prompt").pairs[0].margin == pytest.approx(0.8)


def test_a_typed_prompt_and_a_judge_of_another_range(mined):
    encoder = {"class_type": "CLIPTextEncode", "inputs": {"text": " a large cat ", "clip": ["1", 1]}}
    graph = {**GRAPH, "5": encoder}
    outputs = shown(
        [],
        [report([3.0, 1.0], judge="remote", low=None, high=4.0, higher_is_better=False)],
        ["a.png", "b.png"],
    )
    del outputs["4"]
    [pair] = mined(graph, outputs, {"a.png": 0, "b.png": 255}).pairs
    assert pair.condition == "a large cat" and pair.reward == "remote" and pair.margin == 2.0
    assert (pair.chosen.seed, pair.rejected.seed) == (8, 7)


def test_pictures_of_a_reward_scorer_pair(mined):
    graph = {
        "1": {"class_type": "Loader", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a large cat", "clip": ["1", 1]}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 3, "positive": ["2", 0]}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "RepriseRewardScorer", "inputs": {"images": ["6", 0], "prompt": "a cat"}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 1]}},
    }
    scores = {
        "judge": "shapeworld",
        "higher_is_better": True,
        "low": 0.0,
        "high": 1.0,
        "prompt": "a cat",
        "scores": [0.1, 0.8, 0.4],
        "ranking": [1, 2, 0],
    }
    outputs = {"7": {"reprise_scores": [scores]}, "8": {"images": files("best.png", "mid.png", "last.png")}}
    found = mined(graph, outputs, {"best.png": 255, "mid.png": 100, "last.png": 0})
    [pair] = found.pairs
    assert (pair.prompt, pair.condition, pair.chosen.score) == ("a cat", "a large cat", 0.8)
    assert pair.chosen.seed is None
    assert found.store.image(pair.chosen.image).min() == 1
    # A node on the way that gives model, positive and negative.
    graph["3"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}}
    both = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
    graph["4"] = {"class_type": "ApplyFace", "inputs": both}
    graph["5"]["inputs"].update(model=["4", 0], positive=["4", 1], negative=["4", 2])
    assert mined(graph, outputs, {"best.png": 255, "mid.png": 100, "last.png": 0}).pairs == [pair]
    # If the scorer's input pictures were saved, they are used, in input order.
    graph["8"]["inputs"]["images"] = ["6", 0]
    outputs["8"]["images"] = files("last.png", "best.png", "mid.png")
    assert mined(graph, outputs, {"best.png": 255, "mid.png": 100, "last.png": 0}).pairs == [pair]


def test_rounds_of_a_reflection_loop_pair_by_the_users_prompt(mined):
    """Pictures come in the order of rounds; the reports of the expansion's nodes are not counted again."""
    graph = {**GRAPH, "8": {"class_type": "RepriseReflectionLoop", "inputs": {"prompt": "a cat"}}}
    drawn = [("a cat", 0.2), ("a large cat", 0.9), ("a cat, low", 0.5)]
    rounds = [
        {"round": i, "seed": 7 + i, "prompt": text, "score": score, "verdict": "no", "critique": "low"}
        for i, (text, score) in enumerate(drawn)
    ]
    whole = {
        "judge": "shapeworld",
        "higher_is_better": True,
        "low": 0.0,
        "high": 1.0,
        "best": 1,
        "prompt": "a cat",
        "rounds": rounds,
    }
    names = ["a.png", "b.png", "c.png"]
    part = {**whole, "rounds": rounds[:1], "part": True}
    outputs = {
        "8": {"reprise_reflection": [whole]},
        "10": {"images": files(*names)},
        "8.0.0.5": {"reprise_reflection": [part]},
    }
    pictures = {"a.png": 0, "b.png": 255, "c.png": 100}
    found = mined(graph, outputs, pictures, by="prompt")
    [pair] = found.pairs
    assert (pair.prompt, pair.condition, pair.chosen.drawn_as) == ("a cat", "a cat", "a large cat")
    assert (pair.chosen.seed, pair.rejected.seed, pair.margin) == (8, 7, pytest.approx(0.7))
    assert torch.equal(found.store.image(pair.chosen.image), torch.ones(8, 8, 3))
    assert not found.rewrites and not found.notes
    assert not mined(graph, outputs, pictures).pairs, "each was drawn by another prompt"
    del outputs["10"]
    assert "connect its `images`" in mined(graph, outputs, pictures).notes[0]


def pooled(found):
    """The scores of each group, by prompt."""
    return {
        (pair.prompt, pair.chosen.drawn_as, pair.chosen.score, pair.rejected.score) for pair in found.pairs
    }


PROMPTS = ("a red star", "two blue cats")
LISTED = {"class_type": "SplitLines", "inputs": {"text": "\n".join(PROMPTS)}}  # some node that makes a list
NAMES = ["a.png", "b.png", "c.png", "d.png"]
GREYS = {name: 60 * i for i, name in enumerate(NAMES)}
APART = {("a red star", "a red star", 0.9, 0.2), ("two blue cats", "two blue cats", 0.8, 0.4)}


def test_a_search_over_a_list_of_prompts_gives_a_group_each(mined):
    """The judge and the sampler take the same item of the list. A report without its prompt gives nothing."""
    graph = {**GRAPH, "4": LISTED}
    graph["8"] = {**GRAPH["8"], "inputs": {**GRAPH["8"]["inputs"], "prompt": ["4", 0]}}
    reports = [report([0.2, 0.9], prompt=PROMPTS[0]), report([0.8, 0.4], prompt=PROMPTS[1])]
    outputs = shown([], reports, NAMES)
    del outputs["4"]
    assert pooled(mined(graph, outputs, GREYS)) == APART
    for one in reports:
        del one["prompt"]
    assert mined(graph, outputs, GREYS).counts["groups"] == 0


def test_a_search_over_rewrites_of_a_list_gives_a_group_each(mined):
    graph = {
        **GRAPH,
        "8": {**GRAPH["8"], "inputs": {**GRAPH["8"]["inputs"], "prompt": ["11", 0]}},
        "11": LISTED,
    }
    reports = [report([0.2, 0.9], prompt=PROMPTS[0]), report([0.8, 0.4], prompt=PROMPTS[1])]
    outputs = shown([], reports, NAMES)
    outputs["4"]["reprise_rewrite"] = [{"prompts": [f"large {one}"], "reasons": ["Why."]} for one in PROMPTS]
    found = mined(graph, outputs, GREYS, by="prompt")
    assert pooled(found) == {(one, f"large {words}", *rest) for one, words, *rest in APART}
    assert not found.rewrites


def test_reflection_over_lists_of_prompts_and_judges_gives_a_group_each(mined):
    loop = {"class_type": "RepriseReflectionLoop", "inputs": {"prompt": ["4", 0]}}
    graph = {**GRAPH, "4": LISTED, "8": loop}
    reports = [
        {
            **report([]),
            "prompt": prompt,
            "judge": judge,
            "rounds": [{"prompt": prompt, "seed": 7, "score": score} for score in scores],
        }
        for prompt, scores, judge in zip(PROMPTS, ((0.2, 0.9), (0.8, 0.4)), ("shapeworld", "other"))
    ]
    outputs = {"8": {"reprise_reflection": reports}, "10": {"images": files(*NAMES)}}
    found = mined(graph, outputs, GREYS, by="prompt")
    assert pooled(found) == APART and [pair.reward for pair in found.pairs] == ["shapeworld", "other"]
    for one in reports:
        one["prompt"] = "a cat"
    found = mined(graph, outputs, GREYS, by="prompt")
    assert [pair.reward for pair in found.pairs] == ["shapeworld", "other"]


def test_a_scorer_over_a_list_of_prompts_gives_a_group_each(mined):
    graph = {
        "1": {"class_type": "Loader", "inputs": {}},
        "4": LISTED,
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": ["4", 0], "clip": ["1", 1]}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": 3, "positive": ["2", 0]}},
        "7": {"class_type": "RepriseRewardScorer", "inputs": {"images": ["5", 0], "prompt": ["4", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 1]}},
    }
    reports = [
        {**report([]), "prompt": PROMPTS[0], "scores": [0.2, 0.9], "ranking": [1, 0]},
        {**report([]), "prompt": PROMPTS[1], "scores": [0.8, 0.4], "ranking": [0, 1]},
    ]
    outputs = {"7": {"reprise_scores": reports}, "8": {"images": files(*NAMES)}}
    assert pooled(mined(graph, outputs, GREYS)) == APART


def _without(one, *keys):
    return {key: value for key, value in one.items() if key not in keys}


WHOLE = shown(["a large cat"], [report([0.2, 0.9])], ["a.png", "b.png"])


@pytest.mark.parametrize(
    ("graph", "outputs", "reason"),
    [
        (GRAPH, None, "not in ComfyUI's format"),
        (GRAPH, {**WHOLE, "8": None}, "not in ComfyUI's format"),
        (GRAPH, {**WHOLE, "8": {"reprise_parm": [_without(report([0.2]), "low")]}}, "low: field required"),
        (GRAPH, {**WHOLE, "8": {"reprise_parm": [report([0.2, "fine"])]}}, "score: .*'fine'"),
        (GRAPH, {**WHOLE, "8": {"reprise_parm": [report([1e308, -1e308])]}}, "with a finite difference"),
        (GRAPH, {**WHOLE, "10": {"images": ["a.png", "b.png"]}}, "not in ComfyUI's format"),
        (
            {**GRAPH, "10": {"class_type": "PreviewImage"}},
            WHOLE,
            "not in ComfyUI's format: KeyError: 'inputs'",
        ),
        (None, WHOLE, "not in ComfyUI's format"),
    ],
)
def test_a_damaged_run_is_noted_and_the_others_are_read(server, tmp_path, graph, outputs, reason):
    server.history = {
        "bad": {"prompt": [0, "bad", graph], "outputs": outputs},
        "short": {"prompt": []},
        "good": {"prompt": [0, "good", GRAPH], "outputs": WHOLE},
    }
    notes = []
    [group] = read_history(server.url, notes.append)
    assert [one.score for one in group.pictures] == [0.9, 0.2]
    assert len(notes) == 2 and not any("\n" in note for note in notes)
    assert re.search(f"run bad is left out.*{reason}", notes[0]) and "run short is left out" in notes[1]


def test_pictures_that_were_not_saved_are_noted(mined):
    graph = {name: node for name, node in GRAPH.items() if name != "10"}
    outputs = shown(["a large cat"], [report([0.2, 0.9])], [])
    del outputs["10"]
    found = mined(graph, outputs, {})
    assert not found.pairs and "connect its `images`" in found.notes[0] and "none with" in found.notes[1]
    gone = mined(GRAPH, shown(["a large cat"], [report([0.2, 0.9])], ["a.png", "b.png"]), {"a.png": 0})
    assert not gone.pairs and gone.counts["gone"] == 1


def test_a_sampler_with_several_texts_gives_nothing(mined):
    """Two text encoders with different prompts: which one to train on is unknown."""
    graph = {
        **GRAPH,
        "5": {
            "class_type": "ConditioningCombine",
            "inputs": {"conditioning_1": ["11", 0], "conditioning_2": ["6", 0]},
        },
        "11": {"class_type": "CLIPTextEncode", "inputs": {"text": "large", "clip": ["1", 1]}},
    }
    outputs = shown([], [report([0.2, 0.9])], ["a.png", "b.png"])
    assert mined(graph, outputs, {"a.png": 0, "b.png": 255}).counts["groups"] == 0


def test_an_address_without_comfyui_is_refused(server):
    server.history = ["something", "else"]
    with pytest.raises(BadInput, match="is no ComfyUI server"):
        list(read_history(server.url, print))
    with pytest.raises(BadInput, match="expected an address"):
        list(read_history("ftp://x", print))
    with pytest.raises(BadInput, match=r"cannot reach the ComfyUI server http.*; start it, or correct"):
        list(read_history(closed_url().removesuffix("/v1"), print))
    with pytest.raises(BadInput, match=r"does not show its history \(404: "):
        list(read_history(f"{server.url}/elsewhere", print))
