"""Other rewriters inside a real ComfyUI: a chat endpoint, and a CLIP object that generates text."""

import threading
import time

import pytest

from ..fake_endpoint import GOOD, MODEL, Play, answer, closed_url, playing, refusal
from .conftest import error_of

pytestmark = pytest.mark.comfyui
REWRITE = "a grey cat on a red sofa"
LOADER, REWRITER, SHOWN, DRAWN = "1", "2", "3", "36"


def rewriting(url, seed=0, variants=1, prompt="a cat", timeout=60, model=MODEL):
    return {
        LOADER: {
            "class_type": "RepriseEndpointRewriter",
            "inputs": {
                "url": url,
                "model": model,
                "temperature": 0.9,
                "max_tokens": 2048,
                "timeout": timeout,
            },
        },
        REWRITER: {
            "class_type": "RepriseRewriter",
            "inputs": {
                "prompt": prompt,
                "rewriter": [LOADER, 0],
                "variants": variants,
                "seed": seed,
                "locked": False,
                "locked_prompt": "",
                "critique": "",
            },
        },
        SHOWN: {"class_type": "PreviewAny", "inputs": {"source": [REWRITER, 0]}},
    }


def works(server, nodes):
    """The texts of a run that succeeds."""
    entry = server.run(nodes)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry["outputs"][SHOWN]["text"], entry["outputs"][REWRITER]["reprise_rewrite"][0]


def test_no_widget_takes_a_key(server):
    info = server.http.get("/object_info/RepriseEndpointRewriter").json()["RepriseEndpointRewriter"]
    names = [*info["input"]["required"], *info["input"].get("optional", {})]
    assert names == ["url", "model", "temperature", "max_tokens", "timeout"]
    assert "REPRISE_ENDPOINT_KEY" in info["description"] and "OPENAI_API_KEY" in info["description"]


def test_a_rewrite_is_returned_with_its_reason(server, endpoint):
    texts, shown = works(server, rewriting(endpoint.url))
    assert texts == [REWRITE]
    assert shown["reasons"] == ["one cat, in the middle"] and shown["fallbacks"] == [None]
    [request] = endpoint.requests
    assert "a cat" in request.body["messages"][-1]["content"]


def test_variants_are_requested_together_and_returned_as_a_list(server):
    three = threading.Barrier(3)

    def play(body):
        three.wait(50)
        return answer(f"<prompt>cat {body['seed']}</prompt>")

    with playing(play) as endpoint:
        texts, _ = works(server, rewriting(endpoint.url, variants=3))
        assert len(set(texts)) == 3 and endpoint.max_busy == 3


def test_an_unreadable_answer_falls_back_to_the_users_prompt_with_a_reason(server):
    with playing(answer("I am just a chatbot.")) as endpoint:
        texts, shown = works(server, rewriting(endpoint.url))
        assert texts == ["a cat"] and shown["fallbacks"] == ["the answer has no <prompt>"]


FAILURES = {
    "no json": (Play(b"<html>hello</html>"), "expected JSON from"),
    "no choices": (Play({"ok": True}), "expected choices[0].message.content"),
    "empty": (answer(""), "answered with an empty text"),
    "key": (refusal(401, "who are you?"), "set REPRISE_ENDPOINT_KEY in the environment"),
    "model": (refusal(404, "no such model"), "does not answer as 'tiny-chat'"),
    "quota": (Play({}, 429, {"Retry-After": "3600"}), "takes no more requests"),
    "broken": (refusal(500, "out of memory"), "failed (500: 'out of memory'); its log says why"),
    "huge": (Play(b"x" * 5_000_000), "answered with more than 4,194,304 bytes"),
    "slow": (answer(GOOD, delay=30), "did not answer within 1 s; raise the timeout"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_reported_on_the_node_and_not_cached(server, name):
    play, says = FAILURES[name]
    with playing(play) as endpoint:
        nodes = rewriting(endpoint.url, timeout=1 if name == "slow" else 60)
        error = error_of(server.run(nodes))
        assert error["node_id"] == REWRITER and says in error["exception_message"], error["exception_message"]
        assert error["exception_type"].endswith(("EndpointError", "AnswerRefused"))
        assert server.http.get("/system_stats").status_code == 200
        endpoint.plays = [answer(GOOD)]
        assert works(server, rewriting(endpoint.url))[0] == [REWRITE]


def test_an_unreachable_endpoint_is_reported(server):
    error = error_of(server.run(rewriting(closed_url())))
    assert "cannot reach http" in error["exception_message"] and error["node_id"] == REWRITER
    assert "start its server, or correct the address" in error["exception_message"]


def other_branch():
    """An independent branch that takes a while: it loads a model, draws and saves a picture."""
    sampling = {
        "model": ["31", 0],
        "positive": ["32", 0],
        "negative": ["32", 0],
        "latent_image": ["33", 0],
        "seed": time.time_ns() % 2**31,
        "steps": 6,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    return {
        "31": {"class_type": "RepriseLoadShapeWorld", "inputs": {}},
        "32": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red circle", "clip": ["31", 1]}},
        "33": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "34": {"class_type": "KSampler", "inputs": sampling},
        "35": {"class_type": "VAEDecode", "inputs": {"samples": ["34", 0], "vae": ["31", 2]}},
        DRAWN: {"class_type": "SaveImage", "inputs": {"images": ["35", 0], "filename_prefix": "other"}},
    }


@pytest.mark.parametrize("play", [refusal(401, "who?"), answer(GOOD, delay=30)], ids=["at once", "late"])
def test_other_branches_run_while_an_endpoint_fails(server, play):
    with playing(play) as endpoint:
        entry = server.run({**rewriting(endpoint.url, timeout=2), **other_branch()})
        assert error_of(entry)["node_id"] == REWRITER
        assert len(server.images(entry, DRAWN)) == 1 and SHOWN not in entry["outputs"]


def second(nodes):
    """The same nodes with other ids."""
    found = {}
    for key, node in nodes.items():
        inputs = {
            name: ["1" + value[0], value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        found["1" + key] = {**node, "inputs": inputs}
    return found


def test_a_failure_does_not_stop_a_call_to_another_server(server):
    with playing(refusal(401, "who?")) as broken, playing(answer(GOOD, delay=3)) as slow:
        entry = server.run({**rewriting(broken.url), **second(rewriting(slow.url))})
        assert error_of(entry)["node_id"] == REWRITER
        assert entry["outputs"]["1" + SHOWN]["text"] == [REWRITE]


def test_two_failing_calls_do_not_wait_for_each_other(server):
    nodes = {**rewriting(closed_url()), **second(rewriting(closed_url(), prompt="a dog"))}
    started = time.monotonic()
    assert "cannot reach" in error_of(server.run(nodes))["exception_message"]
    assert time.monotonic() - started < 20


def test_a_bad_address_is_refused_before_the_run_and_the_rest_runs(server):
    entry = server.queue(rewriting("ftp://nowhere"))
    assert entry.status_code == 400
    assert "expected an address such as" in str(entry.json()["node_errors"][LOADER])
    sent = server.queue({**rewriting(closed_url(), model=" "), **other_branch()})
    assert sent.status_code == 200 and "name is empty" in str(sent.json()["node_errors"][LOADER])
    entry = server.result(sent.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success" and len(server.images(entry, DRAWN)) == 1


def test_the_address_may_come_from_another_node(server, endpoint):
    nodes = rewriting(["9", 0])
    nodes["9"] = {"class_type": "PrimitiveString", "inputs": {"value": endpoint.url}}
    assert works(server, nodes)[0] == [REWRITE]
    nodes["9"]["inputs"]["value"] = "nowhere"
    error = error_of(server.run(nodes))
    assert "expected an address such as" in error["exception_message"] and error["node_id"] == LOADER


def interrupted(server, endpoint, nodes) -> float:
    """Seconds from an interrupt, during a slow answer of the endpoint, to the end of the run."""
    prompt_id = server.queue(nodes).json()["prompt_id"]
    while not endpoint.busy:
        time.sleep(0.02)
    time.sleep(0.3)
    server.http.post("/interrupt")
    started = time.monotonic()
    entry = server.result(prompt_id, 60)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"]), entry["status"]
    return time.monotonic() - started


def test_an_interrupt_does_not_wait_for_the_server(server):
    with playing(answer(GOOD, delay=60)) as endpoint:
        assert interrupted(server, endpoint, rewriting(endpoint.url)) < 20  # it would take 60
        while endpoint.busy:  # the connection is closed, so a real server stops its model
            time.sleep(0.02)
        assert endpoint.hung_up == 1
        endpoint.plays = [answer(GOOD)]
        assert works(server, rewriting(endpoint.url))[0] == [REWRITE]


@pytest.fixture
def loop(graph):
    """The saved loop with an endpoint as its rewriter, which is also asked before the first round."""

    def made(url, **inputs):
        nodes = graph("reflection_loop")
        nodes["2"] = rewriting(url)[LOADER]
        del nodes["8"]["inputs"]["first_prompt"]
        nodes["8"]["inputs"].update(inputs)
        return nodes

    return made


def test_the_reflection_loop_uses_the_endpoint(server, loop):
    def play(body):
        asked = body["messages"][-1]["content"]
        return answer(f"<prompt>{'a red circle' if 'was wrong' in asked else 'a blue star'}</prompt>")

    with playing(play) as endpoint:
        entry = server.run(loop(endpoint.url, prompt="a photo of a red circle", rounds=1))
        assert entry["status"]["status_str"] == "success", entry["status"]
        asked = [request.body["messages"][-1]["content"] for request in endpoint.requests]
        assert asked[0] == "a photo of a red circle" and "was wrong" in asked[-1]


def test_the_reflection_loop_reports_failures_and_can_be_interrupted(server, loop):
    error = error_of(server.run(loop(closed_url())))
    assert "cannot reach" in error["exception_message"] and error["node_id"] == "8"
    with playing(answer(GOOD, delay=60)) as endpoint:
        assert interrupted(server, endpoint, loop(endpoint.url)) < 20


def test_other_branches_run_beside_a_failing_loop(server, loop):
    entry = server.run({**loop(closed_url()), **other_branch()})
    assert error_of(entry)["node_id"] == "8" and len(server.images(entry, DRAWN)) == 1


def test_a_clip_that_only_encodes_is_refused(server):
    nodes = rewriting("http://127.0.0.1:1/v1")
    nodes["9"] = {"class_type": "RepriseLoadShapeWorld", "inputs": {}}
    nodes[LOADER] = {
        "class_type": "RepriseClipRewriter",
        "inputs": {"clip": ["9", 1], "temperature": 0.9, "max_length": 64, "top_p": 0.95},
    }
    error = error_of(server.run(nodes))
    assert error["node_id"] == LOADER and "this CLIP only encodes text" in error["exception_message"]
