"""Workflows of the editor become the graphs that it would queue itself."""

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.renderers.comfyui.editor import convert
from reprise.backend.renderers.comfyui.widgets import first_choices


def class_of(*outputs, optional=None, **required):
    return {"input": {"required": required, "optional": optional or {}}, "output": list(outputs)}


# As `/object_info` lists them, cut down.
CLASSES = {
    "Checkpoint": class_of("MODEL", "CLIP", "VAE", ckpt_name=[["a.safetensors"]]),
    "Encode": class_of(
        "CONDITIONING", text=["STRING", {"multiline": True, "dynamicPrompts": True}], clip=["CLIP"]
    ),
    "Lora": class_of("MODEL", "CLIP", model=["MODEL"], clip=["CLIP"], strength=["FLOAT", {"default": 1.0}]),
    "Sampler": class_of(
        "LATENT",
        model=["MODEL"],
        seed=["INT", {"default": 0, "control_after_generate": True}],
        steps=["INT", {"default": 20}],
        positive=["CONDITIONING"],
        sampler_name=["COMBO", {"options": ["euler", "heun"]}],
        optional={"tiled": ["BOOLEAN", {"default": False}]},
    ),
    "Load": class_of("IMAGE", image=[["a.png"], {"image_upload": True}], strength=["FLOAT"]),
    "Resize": class_of(
        "IMAGE",
        image=["IMAGE"],
        how=[
            "COMFY_DYNAMICCOMBO_V3",
            {
                "options": [
                    {"key": "by side", "inputs": {"required": {"side": ["INT", {"default": 64}]}}},
                    {"key": "by factor", "inputs": {"required": {"factor": ["FLOAT", {}]}}},
                ]
            },
        ],
        crop=["BOOLEAN", {}],
    ),
    "Text": class_of("STRING", value=["STRING", {}]),
    "Draw": class_of("MASK", mask=["PAINTER", {}]),
    "Choices": class_of("STRING", several=["COMBO", {"options": ["a", "b"], "multi_select": True}]),
    "CustomCombo": {**class_of("STRING", "INT", choice=["COMBO", {"options": []}]), "name": "CustomCombo"},
}


def node(number, kind, values=None, *, links=(), outputs=(), **more):
    """A node of the editor. `links`: (input, link) or (input, link, type); `outputs`: types."""
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": [
            {"name": name, "link": link, "type": kinds[0] if kinds else "*"} for name, link, *kinds in links
        ],
        "outputs": [{"type": of, "links": [1]} for of in outputs],
        **({} if values is None else {"widgets_values": values}),
        **more,
    }


def flow(*nodes, links=(), subgraphs=()):
    return {"nodes": list(nodes), "links": list(links), "definitions": {"subgraphs": list(subgraphs)}}


def inputs(workflow):
    """Node -> its inputs, converted."""
    return {name: made["inputs"] for name, made in convert(workflow, CLASSES, "flow.json").items()}


SAMPLER = [7, "randomize", 12, "heun", True]  # the second one is the editor's own


def test_widgets_are_read_by_position():
    made = convert(flow(node(5, "Sampler", SAMPLER, title="Draws")), CLASSES, "flow.json")["5"]
    assert made == {
        "class_type": "Sampler",
        "inputs": {"seed": 7, "steps": 12, "sampler_name": "heun", "tiled": True},
        "_meta": {"title": "Draws"},
    }


@pytest.mark.parametrize(
    "made,wanted",
    [
        # An older file has fewer: the rest are the class's own.
        (
            node(1, "Sampler", [7, "fixed"]),
            {"seed": 7, "steps": 20, "sampler_name": "euler", "tiled": False},
        ),
        (node(1, "Encode", {"text": "a cat"}), {"text": "a cat"}),  # as packs save them, by name
        (
            node(1, "Sampler", SAMPLER, widgets_values_named={"seed": 8}),
            {"seed": 8, "steps": 12, "sampler_name": "heun", "tiled": True},
        ),
        (node(1, "Load", ["b.png", 0.5, "image"]), {"image": "b.png", "strength": 0.5}),  # an upload button
        (
            node(1, "Resize", ["by factor", 1.5, True]),
            {"how": "by factor", "how.factor": 1.5, "crop": True},
        ),
        (node(1, "Resize", ["by side", 32, True]), {"how": "by side", "how.side": 32, "crop": True}),
        (node(1, "Choices", [["a", "b"]]), {"several": {"__value__": ["a", "b"]}}),  # a list is a link
        (
            node(1, "CustomCombo", ["red", None, "blue", "red", ""]),
            {"choice": "red", "index": 1, "option1": "blue", "option2": "red", "option3": ""},
        ),
        (node(1, "Encode", ["a {red|blue} cat // or {dog"]), {"text": "a red cat "}),
    ],
)
def test_what_a_node_holds(made, wanted):
    assert inputs(flow(made)) == {"1": wanted}


@pytest.mark.parametrize(
    "text,chosen",
    [
        ("a {red|{pale|dark} blue} cat", "a red cat"),
        ("{{pale|dark} blue|red} cat, {big|small}", "pale blue cat, big"),
        (r"braces \{a|b\} stay", "braces {a|b} stay"),
        ("a cat /* {not\n this} */ asleep", "a cat  asleep"),
        ("a } b", "a } b"),
    ],
)
def test_the_first_of_choices_is_taken(text, chosen):
    assert first_choices(text) == chosen


ONE = [[1, 1, 1, 2, 0, "CLIP"]]


@pytest.mark.parametrize(
    "between,links",
    [
        # A bypassed node hands on its input of the same type.
        (
            [node(3, "Lora", [1.0], links=[("model", None), ("clip", 1)], outputs=["MODEL", "CLIP"], mode=4)],
            [[1, 1, 1, 3, 1, "CLIP"], [2, 3, 1, 2, 0, "CLIP"]],
        ),
        (
            [node(3, "Reroute", links=[("", 1)], outputs=["CLIP"])],
            [[1, 1, 1, 3, 0, "CLIP"], [2, 3, 0, 2, 0, "CLIP"]],
        ),
        (
            [
                node(3, "SetNode", ["words"], links=[("CLIP", 1)], outputs=["*"]),
                node(4, "GetNode", ["words"], outputs=["CLIP"]),
            ],
            [[1, 1, 1, 3, 0, "CLIP"], [2, 4, 0, 2, 0, "CLIP"]],
        ),
    ],
)
def test_links_lead_through_what_is_the_editors_own(between, links):
    ends = [
        node(1, "Checkpoint", ["a.safetensors"], outputs=["MODEL", "CLIP"]),
        node(2, "Encode", ["a cat"], links=[("clip", 2, "CLIP")], outputs=["CONDITIONING"]),
    ]
    made = inputs(flow(*ends, *between, links=links))
    assert made["2"] == {"text": "a cat", "clip": ["1", 1]} and made.keys() == {"1", "2"}


def test_a_muted_node_and_what_it_brought_are_left_out():
    checkpoint = node(1, "Checkpoint", ["a.safetensors"], outputs=["MODEL", "CLIP"], mode=2)
    encode = node(2, "Encode", ["a cat"], links=[("clip", 1, "CLIP")], outputs=["CONDITIONING"])
    assert inputs(flow(checkpoint, encode, links=ONE)) == {"2": {"text": "a cat"}}


def test_a_primitive_stands_for_the_widget_that_it_is_linked_to():
    primitive = node(1, "PrimitiveNode", [31, "increment"], outputs=["INT"])
    sampler = node(2, "Sampler", SAMPLER, links=[("seed", 1, "INT")])
    sampler["inputs"][0]["widget"] = {"name": "seed"}
    assert inputs(flow(primitive, sampler, links=[[1, 1, 0, 2, 0, "INT"]]))["2"]["seed"] == 31


def test_notes_and_switches_of_the_editor_are_no_nodes():
    made = flow(node(1, "MarkdownNote", ["x"]), node(2, "Fast Groups Muter (rgthree)"), node(3, "Sticker"))
    assert inputs(made) == {}


def subgraph(nodes, links, ports=(), ends=(), name="sub"):
    return {
        "id": name,
        "nodes": nodes,
        "inputs": [{"name": port, "type": "*", "linkIds": numbers} for port, numbers in ports],
        "outputs": [{"name": end, "type": "*", "linkIds": numbers} for end, numbers in ends],
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot"), one)) for one in links
        ],
    }


# text and clip come from outside, the conditioning goes out.
WORDS = subgraph(
    [node(3, "Encode", ["inside"], links=[("clip", 2, "CLIP"), ("text", 1, "STRING")], outputs=["COND"])],
    [(1, -10, 0, 3, 1), (2, -10, 1, 3, 0), (3, 3, 0, -20, 0)],
    ports=[("text", [1]), ("clip", [2])],
    ends=[("CONDITIONING", [3])],
)
CLIP_ALONE = [("clip", 1, "CLIP")]


@pytest.mark.parametrize(
    "made,text",
    [
        (node(9, "sub", ["from the outside"], links=CLIP_ALONE), "from the outside"),
        (node(9, "sub", [], links=CLIP_ALONE), "inside"),
        (node(9, "sub", links=[("text", 2), *CLIP_ALONE]), ["8", 0]),
        (
            node(9, "sub", ["proxied"], links=CLIP_ALONE, properties={"proxyWidgets": [["3", "text"]]}),
            "proxied",
        ),
    ],
)
def test_a_subgraph_is_expanded(made, text):
    made["outputs"] = [{"type": "CONDITIONING", "links": [3]}]
    workflow = flow(
        node(1, "Checkpoint", ["a.safetensors"], outputs=["MODEL", "CLIP"]),
        node(8, "Text", ["linked"], outputs=["STRING"]),
        made,
        node(4, "Sampler", SAMPLER, links=[("positive", 3, "CONDITIONING")]),
        links=[[1, 1, 1, 9, 1, "CLIP"], [2, 8, 0, 9, 0, "STRING"], [3, 9, 0, 4, 0, "CONDITIONING"]],
        subgraphs=[WORDS],
    )
    converted = inputs(workflow)
    assert converted["9:3"] == {"text": text, "clip": ["1", 1]}
    assert converted["4"]["positive"] == ["9:3", 0] and "9" not in converted


def test_a_subgraph_in_a_subgraph_and_one_used_twice():
    outer = subgraph(
        [node(5, "sub", ["outer"], links=[("text", 1), ("clip", None)], outputs=["COND"])],
        [(1, -10, 0, 5, 0), (2, 5, 0, -20, 0)],
        ports=[("prompt", [1])],
        ends=[("out", [2])],
        name="outer",
    )
    workflow = flow(
        node(20, "outer", ["first"], outputs=["COND"]),
        node(21, "outer", ["second"], outputs=["COND"]),
        subgraphs=[WORDS, outer],
    )
    assert {name: made["text"] for name, made in inputs(workflow).items()} == {
        "20:5:3": "first",
        "21:5:3": "second",
    }


def test_ids_that_stand_twice_are_named_as_the_editor_names_them():
    workflow = flow(node(3, "Text", ["x"]), node(9, "sub", links=[]), subgraphs=[WORDS])
    assert inputs(workflow).keys() == {"3", "9:10"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_subgraph_that_holds_itself_is_refused(times):
    itself = subgraph([node(n, "sub") for n in range(times)], [])
    with pytest.raises(BadInput, match="subgraphs are more than 50 deep, or hold 20,000 nodes"):
        convert(flow(node(1, "sub"), subgraphs=[itself]), CLASSES, "flow.json")


@pytest.mark.parametrize(
    "workflow,said",
    [
        (
            flow(node(4, "Mystery", [], links=[("x", 1)])),
            r"node 4 \(Mystery\) is not installed on the server",
        ),
        (
            flow(node(4, "Mystery", [], outputs=["IMAGE"], title="Magic")),
            r"node 4 \(Magic, Mystery\) is not installed",
        ),
        (flow(node(4, "workflow>Detail")), "node 4 .* is a group of an old editor"),
        (flow(node(4, "Anything Everywhere", links=[("anything", 1)])), "makes links when"),
        (flow(node(4, "Draw", ["x"])), "node 4 .*makes its input mask in the browser"),
        (flow(node(4, "Sampler", ["7", "fixed", 12])), "node 4 .*holds '7' for seed, not a whole number"),
        (
            flow(
                node(4, "GetNode", ["x"], outputs=["CLIP"]),
                node(2, "Encode", ["a"], links=[("clip", 1)]),
                links=[[1, 4, 0, 2, 0, "CLIP"]],
            ),
            "node 4 .*reads what no Set node sets",
        ),
        (
            flow(
                node(1, "Reroute", links=[("", 1)], outputs=["CLIP"]),
                node(2, "Encode", ["a"], links=[("clip", 2)]),
                links=[[1, 1, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "*"]],
            ),
            "node 1 .*is linked in a circle",
        ),
        ({"nodes": [{}], "links": []}, "is a damaged workflow of the editor"),
        ({"nodes": [3], "links": 4}, "is a damaged workflow of the editor"),
    ],
)
def test_what_cannot_be_converted_is_named_with_the_way_out(workflow, said):
    with pytest.raises(BadInput, match=f"flow.json.*{said}.*") as caught:
        convert(workflow, CLASSES, "flow.json")
    assert r"Export (API)" in str(caught.value) and "\n" not in str(caught.value)
