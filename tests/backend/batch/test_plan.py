"""What varies, where it goes, and the names of runs."""

import copy

import pytest

from reprise.backend.batch.inputs import Inputs, Picture
from reprise.backend.batch.plan import Plan, parse_axis
from reprise.backend.batch.table import Table
from reprise.backend.batch.wildcards import Wildcards
from reprise.backend.core.errors import BadInput, RepriseError
from reprise.backend.renderers.comfyui.graph import Socket
from reprise.backend.renderers.comfyui.sockets import NamedSockets

from ...fake_comfyui import GRAPH


def table(tmp_path, *rows):
    columns = dict.fromkeys(name for row in rows for name in row)
    return Table(tmp_path / "p.csv", tuple(columns), rows)


def planned(rows=None, sweep=(), sets=(), graph=GRAPH, names=NamedSockets(), tmp_path=None, **settings):
    inputs = Inputs("flow.json", graph, names)
    axes = [parse_axis("--set", word, inputs, several=False) for word in sets]
    axes += [parse_axis("--sweep", word, inputs, several=True) for word in sweep]
    return Plan(inputs, table(tmp_path, *rows) if rows else None, axes, **settings)


def jobs(plan):
    return [plan.job(run, run.prompt, {}) for run in plan.runs()]


def test_columns_go_to_their_inputs(tmp_path):
    row = {"prompt": "a dog", "negative": "ugly", "seed": "7", "steps": "9", "cfg": "5", "width": "32"}
    row |= {"model": "sdxl.safetensors", "4.height": "96", "KSampler.denoise": "0.5", "mood": "calm"}
    plan = planned([row], tmp_path=tmp_path)
    [run], [graph] = list(plan.runs()), jobs(plan)
    expected = copy.deepcopy(GRAPH)
    expected["1"]["inputs"]["ckpt_name"] = "sdxl.safetensors"
    expected["2"]["inputs"]["text"], expected["3"]["inputs"]["text"] = "a dog", "ugly"
    expected["4"]["inputs"].update(width=32, height=96)
    expected["5"]["inputs"].update(seed=7, steps=9, cfg=5.0, denoise=0.5)
    assert graph == expected and plan.graph == GRAPH
    assert (run.prompt, run.seed, run.labels) == ("a dog", 7, {"mood": "calm"})
    assert "seed" not in run.settings and run.settings["steps"] == 9


def test_without_prompts_a_run_is_the_workflow_as_it_is():
    plan = planned()
    [run] = plan.runs()
    assert jobs(plan) == [GRAPH] and (run.prompt, run.seed) == ("a cat", 1)


def test_the_order_and_number_of_runs(tmp_path):
    """A model is loaded once: words vary slowest, then prompts, then numbers, then seeds."""
    plan = planned(
        [{"prompt": "a"}, {"prompt": "b"}],
        sweep=["cfg=2,3", "model=x.safetensors,y.safetensors"],
        seeds=2,
        tmp_path=tmp_path,
    )
    runs = list(plan.runs())
    assert len(runs) == 16 == len({run.name for run in runs}) and len({run.group for run in runs}) == 8
    assert [run.settings["model"] for run in runs] == ["x.safetensors"] * 8 + ["y.safetensors"] * 8
    assert [(run.prompt, run.settings["cfg"], run.seed) for run in runs[:5]] == [
        ("a", 2.0, 1),
        ("a", 2.0, 2),
        ("a", 3.0, 1),
        ("a", 3.0, 2),
        ("b", 2.0, 1),
    ]


def names(plan):
    return {run.name for run in plan.runs()}


def test_more_prompts_values_and_seeds_add_runs(tmp_path):
    a, b = {"prompt": "a"}, {"prompt": "b"}
    first = names(planned([a], tmp_path=tmp_path))
    assert first < names(planned([b, a], tmp_path=tmp_path))
    assert first < names(planned([a], seeds=3, tmp_path=tmp_path))
    assert first == names(planned([a, a], tmp_path=tmp_path))
    assert first == names(planned([a | {"mood": "calm"}], tmp_path=tmp_path))
    assert not first & names(planned([a], seed=5, tmp_path=tmp_path))
    swept = names(planned([a], sweep=["cfg=2,3"], tmp_path=tmp_path))
    assert swept < names(planned([a], sweep=["cfg=3,2,4"], tmp_path=tmp_path)) and not first & swept


def test_only_a_changed_workflow_is_another_set():
    changed = copy.deepcopy(GRAPH)
    changed["2"]["inputs"]["text"], changed["5"]["inputs"]["seed"] = "another", 99
    changed["2"]["_meta"] = {"title": "Words"}
    assert planned(graph=changed).mark == planned().mark == planned(seeds=4).mark
    changed["5"]["inputs"]["cfg"] = 3.0
    assert planned(graph=changed).mark != planned().mark


def test_duplicates_are_left_out(tmp_path):
    plan = planned([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}], tmp_path=tmp_path)
    assert len(list(plan.runs())) == 2 and plan.duplicates == 1


def test_random_takes_some_of_the_grid(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    plan = planned(rows, sweep=["cfg=1..9", "denoise=0.25..0.75"], take=5, tmp_path=tmp_path)
    runs = list(plan.runs())
    assert len(runs) == 10 and [run.name for run in runs] == [run.name for run in plan.runs()]
    assert all(run.settings["cfg"] in range(1, 10) for run in runs)
    assert all(0.25 <= run.settings["denoise"] <= 0.75 for run in runs)
    assert {run.settings["denoise"] for run in runs if run.prompt == "a"} != {
        run.settings["denoise"] for run in runs if run.prompt == "b"
    }
    few = planned(rows[:1], sweep=["cfg=1,2"], take=9, tmp_path=tmp_path)
    assert len(list(few.runs())) == 2


def test_wildcards_are_drawn_by_seed(tmp_path):
    plan = planned(
        [{"prompt": "a {red|green|blue|black|white} cat"}], seeds=12, wildcards=Wildcards(), tmp_path=tmp_path
    )
    runs = list(plan.runs())
    assert len({run.prompt for run in runs}) > 2 and len({run.group for run in runs}) == 1
    assert {run.template for run in runs} == {"a {red|green|blue|black|white} cat"}
    assert [graph["2"]["inputs"]["text"] for graph in jobs(plan)] == [run.prompt for run in runs]


def test_variants_are_shared_by_the_seeds(tmp_path):
    plan = planned([{"prompt": "a"}], seeds=5, variants=2, rewriter="template", tmp_path=tmp_path)
    assert [run.variant for run in plan.runs()] == [0, 1, 0, 1, 0]


def test_pictures_are_known_by_their_content(tmp_path):
    graph = copy.deepcopy(GRAPH)
    graph["9"] = {"class_type": "LoadImage", "inputs": {"image": "old.png"}}
    for name, content in (("a.png", b"1"), ("b.png", b"2"), ("c.png", b"1")):
        (tmp_path / name).write_bytes(content)
    rows = [{"image": name} for name in ("a.png", "b.png", "c.png", "theirs.png")]
    plan = planned(rows, graph=graph, tmp_path=tmp_path)
    runs = list(plan.runs())
    assert len(runs) == 3 and plan.duplicates == 1  # c is a
    assert [type(run.values[Socket("9", "image")]) for run in runs] == [Picture, Picture, str]
    picture = runs[0].values[Socket("9", "image")]
    assert plan.job(runs[0], "a", {picture: "reprise/x.png"})["9"]["inputs"]["image"] == "reprise/x.png"


TWO = copy.deepcopy(GRAPH)
TWO["8"] = copy.deepcopy(GRAPH["5"])
TWO["10"] = {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}}


@pytest.mark.parametrize(
    "settings,part",
    [
        ({"rows": [{"promt": "a"}]}, "did you mean 'prompt'"),
        ({"rows": [{"mood": "a"}]}, "no column that is an input"),
        ({"rows": [{"99.text": "a"}]}, "unknown node in flow.json for"),
        ({"rows": [{"5.txt": "a"}]}, "unknown input of node 5"),
        ({"rows": [{"text": "a"}]}, "'text' is not clear; it could be 2.text 'a cat'"),
        ({"rows": [{"prompt": "a", "steps": "many"}]}, "5.steps (KSampler) takes a whole number, got 'many'"),
        ({"rows": [{"prompt": "a", "steps": "2.5"}]}, "takes a whole number, got '2.5'"),
        ({"rows": [{"prompt": "a", "cfg": "nan"}]}, "takes a finite number"),
        ({"rows": [{"prompt": "a", "seed": "-1"}]}, "expected a seed of 0 to"),
        ({"rows": [{"prompt": "a"}], "sweep": ["prompt=b,c"]}, "both set 2.text"),
        ({"sweep": ["cfg=2,3"], "sets": ["5.cfg=4"]}, "both set 5.cfg"),
        ({"sweep": ["seed=1,2"]}, "sets the seed"),
        ({"sweep": ["cfg"]}, "expected NAME=VALUE,VALUE"),
        ({"sweep": ["cfg="]}, "expected NAME=VALUE"),
        ({"sweep": ["mood=1,2"]}, "unknown input of flow.json for --sweep"),
        ({"sweep": ["denoise=0.1..0.9"]}, "--random N"),
        ({"sweep": ["cfg=9..2"]}, "from low to high"),
        ({"sweep": ["cfg=1..9999"], "seeds": 4000}, "the limit is 1,000,000"),
        ({"graph": TWO, "sweep": ["steps=4,8"]}, "'steps' is not clear"),
        ({"sets": ["sampler.x=1"]}, "unknown input"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, settings, part):
    with pytest.raises(RepriseError) as caught:
        list(planned(**settings, tmp_path=tmp_path).runs())
    assert part in str(caught.value) and caught.value.exit_code == 2, str(caught.value)


def test_a_server_says_what_a_whole_number_may_be():
    graph = copy.deepcopy(GRAPH)
    graph["5"]["inputs"]["cfg"] = 7
    about = {"KSampler": {"input": {"required": {"cfg": ["FLOAT", {}], "steps": ["INT", {"min": 1}]}}}}
    inputs = Inputs("flow.json", graph, object_info=lambda: about)
    assert parse_axis("--sweep", "cfg=2.5,3", inputs, several=True).values == (2.5, 3)
    with pytest.raises(BadInput, match="takes a whole number"):
        parse_axis("--sweep", "steps=2.5", inputs, several=True)


def test_values_with_commas_stand_in_quotes():
    axis = parse_axis("--sweep", 'negative="ugly, blurry",plain', Inputs("flow.json", GRAPH), several=True)
    assert axis.values == ("ugly, blurry", "plain")
    axis = parse_axis("--set", "prompt=a cat, black", Inputs("flow.json", GRAPH), several=False)
    assert axis.values == ("a cat, black",)


def test_columns_find_the_negative_behind_a_pack_and_an_input_with_a_dot(tmp_path):
    graph = copy.deepcopy(GRAPH)
    both = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "how.strength": 0.5}
    graph["8"] = {"class_type": "ApplyFace", "inputs": both}
    graph["5"]["inputs"].update(model=["8", 0], positive=["8", 1], negative=["8", 2])
    row = {"prompt": "a dog", "negative": "ugly", "8.how.strength": "0.7"}
    [made] = jobs(planned([row], graph=graph, tmp_path=tmp_path))
    assert (made["2"]["inputs"]["text"], made["3"]["inputs"]["text"]) == ("a dog", "ugly")
    assert made["8"]["inputs"]["how.strength"] == 0.7
