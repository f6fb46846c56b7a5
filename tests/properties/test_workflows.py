"""Saved workflows of ComfyUI, and what its servers send."""

import asyncio
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.backend.core.errors import RepriseError
from reprise.backend.preferences import history
from reprise.backend.renderers.comfyui.client import (
    ComfyUIClient,
    NoPicture,
    QueuedGraph,
    ServerLost,
    _refusal,
)
from reprise.backend.renderers.comfyui.files import read_workflow
from reprise.backend.renderers.comfyui.renderer import _decoded
from reprise.backend.renderers.comfyui.sockets import NamedSockets
from reprise.backend.renderers.comfyui.widgets import first_choices
from reprise.backend.renderers.comfyui.workflow import SINK, load_workflow, prepare

from ..fake_comfyui import GRAPH
from .inputs import as_json, changed, documents, json_values, mangled, refuses_clearly, texts

LINKS = st.tuples(st.sampled_from([*GRAPH, "gone"]), st.integers(-1, 3)).map(list)
sockets = (
    st.sampled_from([None, "6.text", "6", "3.seed", "3", "9", "gone.text", ".", "+", "6.text+3.seed"]) | texts
)


@given(
    documents(GRAPH, {"prompt": GRAPH}) | changed(GRAPH, LINKS).map(as_json) | mangled(as_json(GRAPH)),
    st.builds(NamedSockets, prompt=sockets, seed=sockets, steps=sockets, output=sockets),
    st.none() | st.integers(1, 50),
)
def test_workflow_files(scratch, data, named, steps):
    (scratch / "flow.json").write_bytes(data)
    for names in (NamedSockets(), named):
        workflow = refuses_clearly(load_workflow, scratch / "flow.json", names, steps)
        if workflow is not None:
            job = workflow.job("a cube", 7, "PreviewImage")
            assert job[SINK]["inputs"]["images"] == list(workflow.picture)
            json.dumps(job, allow_nan=False)  # as it is posted


EDITOR = {
    "nodes": [
        {
            "id": 1,
            "type": "Text",
            "mode": 0,
            "inputs": [{"name": "value", "type": "STRING", "link": 2, "widget": {"name": "value"}}],
            "outputs": [{"name": "", "type": "STRING", "links": [1]}],
            "widgets_values": ["a cube", 7, "fixed", "by side", 3],
        },
        {"id": 2, "type": "Reroute", "mode": 4, "inputs": [{"name": "", "type": "*", "link": 1}]},
        {"id": 3, "type": "sub", "mode": 0, "inputs": [{"name": "text", "link": 1}], "widgets_values": ["x"]},
        {"id": 4, "type": "PrimitiveNode", "outputs": [{"type": "STRING", "links": [2]}]},
    ],
    "links": [[1, 1, 0, 3, 0, "STRING"], [2, 4, 0, 1, 0, "STRING"]],
    "definitions": {
        "subgraphs": [
            {
                "id": "sub",
                "inputs": [{"name": "text", "type": "STRING", "linkIds": [1]}],
                "outputs": [{"name": "out", "linkIds": [1]}],
                "nodes": [{"id": 1, "type": "Text", "inputs": [{"name": "value", "link": 1}], "outputs": []}],
                "links": [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0}],
            }
        ]
    },
}
SHOWN = [{"key": "by side", "inputs": {"required": {"side": ["INT", {}]}}}]
CLASSES = {
    "Text": {
        "input": {
            "required": {
                "value": ["STRING", {"dynamicPrompts": True}],
                "seed": ["INT", {}],
                "how": ["COMFY_DYNAMICCOMBO_V3", {"options": SHOWN}],
            }
        },
        "output": ["STRING"],
    }
}


@given(documents(EDITOR) | changed(EDITOR).map(as_json))
def test_workflows_of_the_editor(scratch, data):
    (scratch / "flow.json").write_bytes(data)
    graph = refuses_clearly(read_workflow, scratch / "flow.json", lambda: CLASSES)
    if graph is not None:
        json.dumps(graph, allow_nan=False)


@given(texts)
def test_choices_of_a_text(text):
    assert len(first_choices(text)) <= len(text)


def chain(length, width=1):
    """A sampler behind `length` nodes of text, each with `width` inputs from the one before it."""
    graph = {
        "0": {"class_type": "Text", "inputs": {"text": "a cube"}},
        "clip": {"class_type": "CLIPTextEncode", "inputs": {"text": [str(length), 0]}},
        "draw": {
            "class_type": "KSampler",
            "inputs": {"model": ["m", 0], "positive": ["clip", 0], "seed": 1, "steps": 4},
        },
        "m": {"class_type": "Loader", "inputs": {}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["draw", 0]}},
    }
    for n in range(1, length + 1):
        graph[str(n)] = {"class_type": "Join", "inputs": {f"text_{i}": [str(n - 1), 0] for i in range(width)}}
    return graph


@pytest.mark.parametrize(("length", "width"), [(3_000, 1), (40, 3)])
def test_long_and_wide_chains_of_texts_end(length, width):
    refuses_clearly(prepare, chain(length, width))


def test_a_deeply_nested_input_ends():
    graph = chain(1)
    value = "x"
    for _ in range(900):
        value = [value]
    graph["m"]["inputs"]["shape"] = value
    refuses_clearly(prepare, graph)


MESSAGES = (
    {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "x"}},
    {"type": "progress", "data": {"value": 3, "max": 8, "prompt_id": "run", "node": "3"}},
    {"type": "executing", "data": {"node": None, "prompt_id": "run"}},
    {
        "type": "executed",
        "data": {
            "node": SINK,
            "prompt_id": "run",
            "output": {"images": [{"filename": "../../x", "type": "temp"}]},
        },
    },
    {"type": "execution_error", "data": {"prompt_id": "run", "node_id": "3", "exception_message": "no"}},
)
PICTURE = struct.pack(">II", 4, 40) + json.dumps({"prompt_id": "run", "node_id": SINK}).encode() + b"PNG"


@given(documents(*MESSAGES).map(lambda data: data.decode("utf-8", "replace")) | mangled(PICTURE))
def test_messages_of_a_server(message):
    async def handle():
        client = ComfyUIClient("http://127.0.0.1:1", "us", 60)
        client.runs["run"] = QueuedGraph(lambda node, share: None)
        try:
            client._handle(message)
        except ServerLost as error:
            assert str(error)
        await client.close()

    asyncio.run(handle())


@given(
    changed(
        {"error": {"message": "bad"}, "node_errors": {"3": {"errors": [{"message": "m", "details": "d"}]}}}
    )
)
def test_refusals_of_a_server(answer):
    if isinstance(answer, dict) and "error" in answer:
        assert _refusal(prepare(GRAPH).title, answer)


@given(mangled(b"\x89PNG\r\n\x1a\n"))
def test_pictures_of_a_server(data):
    refuses_clearly(_decoded, data, errors=NoPicture)


RUN = {
    "prompt": [
        1,
        "run",
        {**GRAPH, "20": {"class_type": "RepriseScorer", "inputs": {"images": ["8", 0], "prompt": "a cube"}}},
        {},
        [],
    ],
    "outputs": {
        "9": {"images": [{"filename": "../../x.png", "subfolder": "..", "type": "output"}]},
        "20": {
            "reprise_scores": [
                {
                    "judge": "shapeworld",
                    "higher_is_better": True,
                    "low": 0,
                    "high": 1,
                    "prompt": "a cube",
                    "scores": [0.5],
                    "ranking": [0],
                }
            ]
        },
    },
}


class Answer:
    def __init__(self, body, status=200):
        self.body, self.status, self.message = body, status, "no"


@given(documents({"run": RUN}))
def test_a_servers_history(data):
    before = history.fetch
    history.fetch = lambda url, path, **_: Answer(data if path == "history" else b"no picture")
    try:
        groups = refuses_clearly(lambda: list(history.read_history("http://127.0.0.1:1", lambda line: None)))
        for group in groups or ():
            for picture in group.pictures:
                assert picture.load() is None
    finally:
        history.fetch = before


@given(json_values)
def test_whatever_a_queue_is(value):
    async def ask():
        client = ComfyUIClient("http://127.0.0.1:1", "us", 60)

        async def send(*_, **__):
            return Answer(as_json(value))

        client._send = send
        for call in (client.probe, client.cancel_runs):
            try:
                await call()
            except (ServerLost, RepriseError) as error:
                assert str(error)
        await client.close()

    asyncio.run(ask())
