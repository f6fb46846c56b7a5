"""Where prompt, seed, steps and picture are found in workflows."""

import copy
import json

import pytest

from reprise.backend.core.errors import BadInput, RenderFailed, Unsupported
from reprise.backend.renderers.comfyui.sockets import NamedSockets
from reprise.backend.renderers.comfyui.workflow import load_workflow, prepare

from ....fake_comfyui import GRAPH
from .graphs import API, CONTROL, FLUX, SDXL, changed, node, sampler

TABLE = {
    # name: (graph, prompts, seeds, steps, denoiser rows)
    "SD1.5": (GRAPH, ["2.text"], ["5.seed"], 4, 8),
    "FLUX": (FLUX, ["4.clip_l", "4.t5xxl"], ["6.noise_seed"], 20, 20),
    "FLUX, CLIP-L left empty": (
        {**FLUX, "4": node("CLIPTextEncodeFlux", clip=["2", 0], clip_l="", t5xxl="a cat", guidance=3.5)},
        ["4.t5xxl"],
        ["6.noise_seed"],
        20,
        20,
    ),
    "FLUX, guided by true CFG, half a schedule each": (
        {
            **FLUX,
            "5": node("CFGGuider", model=["1", 0], positive=["4", 0], negative=["4", 0], cfg=3.0),
            "13": node("SplitSigmas", sigmas=["8", 0], step=10),
            "14": node("DisableNoise"),
            "10": node(
                "SamplerCustomAdvanced",
                noise=["6", 0],
                guider=["5", 0],
                sampler=["7", 0],
                sigmas=["13", 0],
                latent_image=["9", 0],
            ),
            "15": node(
                "SamplerCustomAdvanced",
                noise=["14", 0],
                guider=["5", 0],
                sampler=["7", 0],
                sigmas=["13", 1],
                latent_image=["10", 0],
            ),
            "11": node("VAEDecode", samples=["15", 0], vae=["3", 0]),
        },
        ["4.clip_l", "4.t5xxl"],
        ["6.noise_seed"],
        20,
        40,
    ),
    "SDXL with a refiner": (SDXL, ["2.text_l", "2.text_g", "9.text"], ["5.noise_seed"], 25, 50),
    "ControlNets": (CONTROL, ["2.text"], ["5.seed"], 4, 8),
    "a Reroute": (
        changed(n8=node("Reroute", **{"": ["2", 0]}), n5=sampler(positive=["8", 0])),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a linked text": (
        changed(
            n8=node("PrimitiveStringMultiline", value="a cat"),
            n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
        ),
        ["8.value"],
        ["5.seed"],
        4,
        8,
    ),
    "a linked seed is cut off": (
        changed(n8=node("PrimitiveInt", value=5), n5=sampler(seed=["8", 0])),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "linked steps": (
        changed(n8=node("PrimitiveInt", value=30), n5=sampler(steps=["8", 0], cfg=1.0)),
        ["2.text"],
        ["5.seed"],
        30,
        30,
    ),
    "two passes": (
        changed(
            n8=node("LatentUpscale", samples=["5", 0], width=128, height=128),
            n9=sampler(latent_image=["8", 0], denoise=0.5, seed=77, steps=2),
            n6=node("VAEDecode", samples=["9", 0], vae=["1", 2]),
        ),
        ["2.text"],
        ["5.seed", "9.seed"],
        6,
        12,
    ),
    "combined areas of one text": (
        changed(
            n8=node("CLIPTextEncode", text="a cat", clip=["1", 1]),
            n9=node("ConditioningSetArea", conditioning=["8", 0], width=64, height=64),
            n10=node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["9", 0]),
            n5=sampler(positive=["10", 0]),
        ),
        ["2.text", "8.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a text with a style behind it that is empty": (
        changed(
            n8=node("StringConcatenate", string_a="a cat", string_b="", delimiter=", "),
            n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
        ),
        ["8.string_a"],
        ["5.seed"],
        4,
        8,
    ),
    # Which of two prompts an output is, is carried from the sampler on: positions differ between nodes.
    "a node that gives model, positive and negative": (
        changed(
            n8=node("ApplyFace", model=["1", 0], positive=["2", 0], negative=["3", 0], weight=0.8),
            n5=sampler(model=["8", 0], positive=["8", 1], negative=["8", 2]),
        ),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "prompts that are taken the other way round": (
        {**CONTROL, "5": sampler(positive=["11", 1], negative=["11", 0])},
        ["3.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a pack's bundle": (
        changed(
            n8=node("ToBundle", model=["1", 0], clip=["1", 1], positive=["2", 0], negative=["3", 0]),
            n9=node("FromBundle", basic_pipe=["8", 0]),
            n5=sampler(model=["9", 0], positive=["9", 3], negative=["9", 4]),
        ),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a sampler that is given a bundle alone": (
        changed(
            n8=node("ToBundle", model=["1", 0], clip=["1", 1], positive=["2", 0], negative=["3", 0]),
            n5=node("DrawBundle", basic_pipe=["8", 0], seed=1, steps=4, cfg=7.0, latent_image=["4", 0]),
        ),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "an encoder of both prompts": (
        changed(
            n2=node("BothEncode", positive_prompt="a cat", negative_prompt="blurry", t5=["1", 1]),
            n3=None,
            n8=node("ContextOptions", context_schedule="uniform_standard", note="my own"),
            n5=node(
                "VideoSampler",
                model=["1", 0],
                text_embeds=["2", 0],
                context_options=["8", 0],
                seed=1,
                steps=4,
                cfg=6.0,
            ),
        ),
        ["2.positive_prompt"],
        ["5.seed"],
        4,
        8,
    ),
    "a text that is styled on both sides": (
        changed(
            n8=node("Styler", text_positive="a cat", text_negative="blurry", style="photo", log_prompt="No"),
            n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
            n3=node("CLIPTextEncode", text=["8", 1], clip=["1", 1]),
        ),
        ["8.text_positive"],
        ["5.seed"],
        4,
        8,
    ),
    "a text that is made from a picture": (
        changed(
            n8=node("LoadImage", image="ref.png"),
            n9=node("Tagger", model="wd-vit-v3", exclude_tags="", threshold=0.3, image=["8", 0]),
            n2=node("CLIPTextEncode", text=["9", 0], clip=["1", 1]),
        ),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a text that is read from a file": (
        changed(
            n9=node("LoadText", file="prompts.txt", source="C:\\texts\\mine.txt"),
            n2=node("CLIPTextEncode", text=["9", 0], clip=["1", 1]),
        ),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "an encoder that has a seed for its wildcards": (
        changed(
            n2=node(
                "WildcardEncode",
                model=["1", 0],
                clip=["1", 1],
                wildcard_text="a __pet__",
                populated_text="a cat",
                mode="populate",
                seed=3,
                **{"Select to add LoRA": "Select the LoRA"},
            ),
            n5=sampler(model=["2", 0], positive=["2", 2]),
        ),
        ["2.populated_text", "2.wildcard_text"],
        ["5.seed"],
        4,
        8,
    ),
    "a number called noise": (
        changed(n8=node("ApplyAdapter", weight=1.0, noise=0.3, model=["1", 0]), n5=sampler(model=["8", 0])),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a text box in capitals": (
        changed(n8=node("Box", Text="a cat"), n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1])),
        ["8.Text"],
        ["5.seed"],
        4,
        8,
    ),
    "a blank that both prompts end with": (
        changed(
            n8=node("Text", text=" "),
            n9=node("Text", text=" "),
            n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
            n3=node("CLIPTextEncode", text=["9", 0], clip=["1", 1]),
        ),
        ["8.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a negative prompt of the same words": (
        changed(n3=node("CLIPTextEncode", text="a cat", clip=["1", 1])),
        ["2.text"],
        ["5.seed"],
        4,
        8,
    ),
    "a name with a dot": (
        changed(
            n2=None,
            n8=node("Encode", **{"model.prompt": "a cat", "model": "large"}),
            n5=sampler(positive=["8", 0]),
        ),
        ["8.model.prompt"],
        ["5.seed"],
        4,
        8,
    ),
    "a subgraph's ids, and a node that passes everything on": (
        {
            f"57:{name}": {
                "class_type": made["class_type"],
                "inputs": {
                    key: [f"57:{value[0]}", value[1]] if isinstance(value, list) else value
                    for key, value in made["inputs"].items()
                },
            }
            for name, made in changed(
                n8=node("Context", model=["1", 0], positive=["2", 0], negative=["3", 0], latent=["4", 0]),
                n5=sampler(model=["8", 1], positive=["8", 4], negative=["8", 5]),
            ).items()
        },
        ["57:2.text"],
        ["57:5.seed"],
        4,
        8,
    ),
    "a loader with texts of its own": (
        changed(
            n1=node("Efficient Loader", ckpt_name="x.safetensors", positive="a cat", negative="blurry"),
            n2=None,
            n3=None,
            n5=sampler(positive=["1", 1], negative=["1", 2]),
        ),
        ["1.positive"],
        ["5.seed"],
        4,
        8,
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_prompt_seed_and_steps_are_found(case):
    graph, prompts, seeds, steps, rows = TABLE[case]
    before = copy.deepcopy(graph)
    found = prepare(graph)
    assert sorted(map(str, found.prompts)) == sorted(prompts)
    assert sorted(map(str, found.seeds)) == sorted(seeds)
    assert (found.steps, found.rows) == (steps, rows)
    assert graph == before


@pytest.mark.parametrize(
    "name,output,prompts,seeds,left_out",
    [
        ("flux_best_of_n", None, ["3.value"], ["8.seed"], {"9", "10"}),
        ("sdxl_best_of_n", None, ["3.value"], ["8.seed"], {"9", "10"}),
        ("reflection_loop", None, ["4.value"], ["8.seed"], {"9", "10", "11", "12"}),
        # The rewriter is passed over: a job brings its own rewrite. The judge reads what the job says.
        ("shapeworld_quick_start", None, ["5.text", "8.prompt"], ["8.seed"], {"2", "4", "9", "10"}),
        (
            "rewrite_and_score",
            "16",
            ["4.value", "6.text"],
            ["10.seed"],
            {"2", "5", "7", "11", "13", "15", "16", "17"},
        ),
        ("rewrite_and_score", "17", ["4.value"], ["11.seed"], {"2", "5", "6", "10", "12", "14", "16", "17"}),
    ],
)
def test_the_shipped_workflows(name, output, prompts, seeds, left_out):
    graph = json.loads((API / f"{name}.json").read_text())
    found = load_workflow(API / f"{name}.json", NamedSockets(output=output))
    assert sorted(map(str, found.prompts)) == prompts and list(map(str, found.seeds)) == seeds
    assert set(graph) - set(found.graph) == left_out


def test_a_job_is_the_graph_with_prompt_and_seed():
    found = prepare(GRAPH)
    job = found.job("a dog", 5, "PreviewImage")
    wanted = {
        name: {"class_type": made["class_type"], "inputs": dict(made["inputs"])}
        for name, made in GRAPH.items()
        if name != "7"
    }
    wanted["2"]["inputs"]["text"], wanted["5"]["inputs"]["seed"] = "a dog", 5
    wanted["reprise"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    assert job == wanted
    assert found.job("a cat", 5, "PreviewImage")["5"] == job["5"]


@pytest.mark.parametrize("case", ["a number called noise", "an encoder that has a seed for its wildcards"])
def test_what_only_has_a_noise_or_a_seed_is_no_sampler(case):
    assert prepare(TABLE[case][0]).samplers == ("5",)


@pytest.mark.parametrize(
    "ends",
    [
        {"n7": node("SendOverSocket", images=["6", 0])},
        {"n7": node("SaveImageWebsocket", images=["6", 0])},
        {"n7": node("VideoCombine", images=["6", 0], frame_rate=8)},
        {"n7": node("SaveVideo", video=["8", 0]), "n8": node("CreateVideo", images=["6", 0], fps=8.0)},
    ],
)
def test_an_end_that_is_no_save_image_node(ends):
    found = prepare(changed(**ends))
    assert found.picture == ("6", 0) and list(map(str, found.prompts)) == ["2.text"]


def test_a_server_says_which_output_is_which():
    """The positive input of a sampler may be given a node's second output alone: only its name tells."""
    graph = {**CONTROL, "5": sampler(positive=["11", 1])}
    names = {"ControlNetApplyAdvanced": {"output_name": ["positive", "negative"]}}
    assert list(map(str, prepare(graph).prompts)) == ["2.text"]
    assert list(map(str, prepare(graph, object_info=lambda: names).prompts)) == ["3.text"]

    def no_server():
        raise RenderFailed("no ComfyUI server answers")

    assert list(map(str, prepare(graph, object_info=no_server).prompts)) == ["2.text"]


def test_one_picture_a_job():
    assert prepare(FLUX).graph["9"]["inputs"]["batch_size"] == 1


def test_the_fingerprint_covers_all_but_prompt_and_seed():
    whole = [
        json.dumps(prepare(graph).content)
        for graph in (
            GRAPH,
            changed(n2=node("CLIPTextEncode", "Words", text="a dog", clip=["1", 1]), n5=sampler(seed=99)),
            changed(n5=sampler(cfg=6.0)),
            changed(n3=node("CLIPTextEncode", text="ugly", clip=["1", 1])),
        )
    ]
    assert whole[0] == whole[1] and len(set(whole)) == 3
    assert json.dumps(prepare(GRAPH, NamedSockets(seed="5.seed")).content) == whole[0]
    assert json.dumps(prepare(GRAPH, steps=9).content) not in whole


@pytest.mark.parametrize(
    "graph,names,prompts,seeds",
    [
        (GRAPH, NamedSockets(prompt="3.text", seed="5.seed"), ["3.text"], ["5.seed"]),
        (GRAPH, NamedSockets(prompt="3", seed="5"), ["3.text"], ["5.seed"]),
        (FLUX, NamedSockets(prompt="4.clip_l+4.t5xxl"), ["4.clip_l", "4.t5xxl"], ["6.noise_seed"]),
        (FLUX, NamedSockets(prompt="4.t5xxl"), ["4.t5xxl"], ["6.noise_seed"]),
        (TABLE["two passes"][0], NamedSockets(seed="9"), ["2.text"], ["9.seed"]),
    ],
)
def test_named_sockets_are_used(graph, names, prompts, seeds):
    found = prepare(graph, names)
    assert list(map(str, found.prompts)) == prompts and list(map(str, found.seeds)) == seeds


def test_steps_are_set_in_the_input_that_holds_them():
    assert prepare(GRAPH, steps=9).graph["5"]["inputs"]["steps"] == 9
    flux = prepare(FLUX, steps=3)
    assert (flux.graph["8"]["inputs"]["steps"], flux.steps) == (3, 3)
    linked = prepare(TABLE["linked steps"][0], steps=5)
    assert linked.graph["8"]["inputs"]["value"] == 5
    named = prepare(TABLE["two passes"][0], NamedSockets(steps="5.steps"), steps=9)
    assert [named.graph[name]["inputs"]["steps"] for name in ("5", "9")] == [9, 2]
    with pytest.raises(BadInput, match=r"input for steps is not clear; it could be 5.steps 4 .*9.steps 2"):
        prepare(TABLE["two passes"][0], steps=9)
    with pytest.raises(Unsupported, match="share their steps by start_at_step"):
        prepare(SDXL, steps=9)
    plain = {**FLUX, "8": node("ManualSigmas", sigmas="1, 0.5, 0")}
    assert prepare(plain).steps == 1
    with pytest.raises(Unsupported, match="no input for steps"):
        prepare(plain, steps=9)


def test_a_posted_prompt_is_read_too(tmp_path):
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"prompt": GRAPH, "client_id": "x"}))
    assert load_workflow(path).content == prepare(GRAPH).content


def test_links_in_a_circle_end():
    graph = changed(
        n8=node("Reroute", value=["9", 0]),
        n9=node("Reroute", value=["8", 0]),
        n2=node("CLIPTextEncode", text=["8", 0], clip=["1", 1]),
        n5=sampler(steps=["8", 0]),
    )
    assert list(map(str, prepare(graph).prompts)) == ["2.text"]  # no text is behind it
