"""Workflows in which something is missing or not clear, and files that are none: refused in one line."""

import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.renderers.comfyui.sockets import NamedSockets
from reprise.backend.renderers.comfyui.workflow import load_workflow, prepare

from ....fake_comfyui import GRAPH
from .graphs import API, FLUX, ROOT, changed, node, sampler

REFUSED = {
    "a conditioning that is zeroed": (
        changed(n8=node("ConditioningZeroOut", conditioning=["2", 0]), n5=sampler(positive=["8", 0])),
        NamedSockets(),
        ["the prompt has no effect", "node 8 (ConditioningZeroOut) zeroes what reaches node 5 (KSampler)"],
    ),
    # The encoder's own input is offered first; settings and names are not.
    "a text that a language model writes": (
        changed(
            n8=node("Connect", url="http://127.0.0.1:11434", model="qwen3:8b", keep_alive_unit="minutes"),
            n9=node("Generate", system="You expand.", prompt="a cat", format="text", connectivity=["8", 0]),
            n2=node("CLIPTextEncode", "Positive", text=["9", 0], clip=["1", 1]),
        ),
        NamedSockets(),
        [
            "it could be 2.text (Positive, CLIPTextEncode), 9.system 'You expand.' (Generate), "
            "9.prompt 'a cat' (Generate);"
        ],
    ),
    "a text in which something is replaced": (
        changed(
            n9=node("Replace", string="a CAT", regex_pattern="CAT", replace="cat", case_insensitive=True),
            n2=node("CLIPTextEncode", text=["9", 0], clip=["1", 1]),
        ),
        NamedSockets(),
        ["it could be 2.text (CLIPTextEncode), 9.string 'a CAT'", "9.replace 'cat'"],
    ),
    "a text that a node shows, and the one it showed": (
        changed(
            n8=node("PrimitiveStringMultiline", value="a cat"),
            n9=node("ShowText", text=["8", 0], text_0="a dog"),
            n2=node("CLIPTextEncode", text=["9", 0], clip=["1", 1]),
        ),
        NamedSockets(),
        ["it could be 2.text", "8.value 'a cat'", "9.text_0 'a dog'"],
    ),
    "two ends that are no Save node": (
        changed(
            n7=node("SendOverSocket", images=["6", 0]),
            n8=sampler(seed=2),
            n9=node("VAEDecode", samples=["8", 0], vae=["1", 2]),
            n10=node("VideoCombine", images=["9", 0]),
        ),
        NamedSockets(),
        ["picture is not clear", "7 (SendOverSocket)", "10 (VideoCombine)", "flow,output=7"],
    ),
    "two texts": (
        changed(
            n8=node("CLIPTextEncode", "Style", text="in oil", clip=["1", 1]),
            n9=node("ConditioningConcat", conditioning_to=["2", 0], conditioning_from=["8", 0]),
            n5=sampler(positive=["9", 0]),
        ),
        NamedSockets(),
        [
            "prompt is not clear",
            "2.text 'a cat' (Positive, CLIPTextEncode)",
            "8.text 'in oil' (Style, CLIPTextEncode)",
            "flow,prompt=2.text",
        ],
    ),
    "a text put together": (
        changed(
            n8=node("StringConcatenate", string_a="a cat", string_b="in oil", delimiter=", "),
            n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
        ),
        NamedSockets(),
        ["prompt is not clear", "8.string_a 'a cat'", "8.string_b 'in oil'"],
    ),
    "a judge with words of its own": (
        {
            **json.loads((API / "shapeworld_quick_start.json").read_text()),
            "5": node("CLIPTextEncode", text="two red squares side by side", clip=["1", 1]),
        },
        NamedSockets(),
        ["prompt is not clear", "5.text", "8.prompt 'a photo of two red squares'"],
    ),
    "no text": (
        changed(n5=sampler(positive=["1", 1])),
        NamedSockets(),
        ["prompt is not clear", "3.text 'blurry'"],
    ),
    "no sampler": (
        changed(n6=node("LoadImage", image="cat.png")),
        NamedSockets(),
        ["no input for a prompt", "no text"],
    ),
    "no seed": (
        changed(n5=node("Draw", model=["1", 0], positive=["2", 0])),
        NamedSockets(prompt="2"),
        ["no input for a seed"],
    ),
    "two pictures": (
        changed(
            n8=sampler(seed=2),
            n9=node("VAEDecode", samples=["8", 0], vae=["1", 2]),
            n10=node("SaveImage", "The other", images=["9", 0], filename_prefix="b"),
        ),
        NamedSockets(),
        ["picture is not clear", "7 (SaveImage)", "10 (The other, SaveImage)", "flow,output=7"],
    ),
    "no picture": (changed(n7=None), NamedSockets(), ["saves no picture", "Save Image"]),
    "an output that is none": (GRAPH, NamedSockets(output="5"), ["node 5 is given no images"]),
    "an output that is not there": (GRAPH, NamedSockets(output="70"), ["unknown node in flow: '70'"]),
    "a prompt that is not there": (
        GRAPH,
        NamedSockets(prompt="20.text"),
        ["unknown node for prompt", "'20'"],
    ),
    "a prompt beside the picture": (
        changed(n8=node("CLIPTextEncode", text="a dog", clip=["1", 1])),
        NamedSockets(prompt="8.text"),
        ["'8'"],
    ),
    "an input that is not there": (
        GRAPH,
        NamedSockets(prompt="2.txt"),
        ["unknown input of node 2", "mean 'text'"],
    ),
    "a seed that is a text": (
        GRAPH,
        NamedSockets(seed="2.text"),
        ["seed=2.text", "a whole number", "'a cat'"],
    ),
    "a node with two texts": (FLUX, NamedSockets(prompt="4"), ["4.clip_l 'a cat'", "4.t5xxl"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_inputs_are_refused_with_the_candidates(case):
    graph, names, parts = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        prepare(graph, names)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in parts), said


def test_a_prompt_that_is_named_and_zeroed_is_drawn_with_a_warning(caplog):
    graph = REFUSED["a conditioning that is zeroed"][0]
    assert list(map(str, prepare(graph, NamedSockets(prompt="2.text")).prompts)) == ["2.text"]
    assert "the prompt has no effect: node 8" in caplog.text


@pytest.mark.parametrize(
    "content,parts",
    [
        (None, ["cannot read the workflow"]),
        (b"\x89PNG\r\n", ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[]", ["holds no nodes"]),
        (b"{}", ["holds no nodes"]),
        (b'{"1": {"class_type": "KSampler"}}', ["node '1' has no class_type and inputs"]),
        (b'{"version": 1}', ["node 'version'"]),
        (b'{"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}', ["1.x comes from node '9'"]),
    ],
)
def test_files_that_are_not_workflows(tmp_path, content, parts):
    path = tmp_path / "w.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_workflow(path)
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in parts)


def test_a_workflow_for_the_editor_needs_a_server():
    for path in (ROOT / "workflows").glob("*.json"):
        with pytest.raises(BadInput, match=r"for the editor.*server.*Export \(API\)"):
            load_workflow(path)
