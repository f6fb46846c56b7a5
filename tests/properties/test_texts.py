"""Files that people write: prompts, tables, rows, configs, logs and data of trainings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.backend.cli.prompts import gather
from reprise.backend.core.config import load_config, parse_config, save_config
from reprise.backend.evaluation.tables import TableRow, read_rows
from reprise.backend.factory import TRAINERS, find_trainer
from reprise.backend.preferences.table import read_table
from reprise.backend.rewards.geneval.prompts import read_cases
from reprise.backend.storage.prompt_files import check_prompt, read_prompts
from reprise.backend.training.rollouts import picture_log
from reprise.backend.training.rollouts.prompts import read_prompts as read_training_prompts
from reprise.backend.training.sft.answers import _read_answers, _read_info
from reprise.backend.training.sft.data import read_examples

from .inputs import as_json, changed, documents, mangled, refuses_clearly, texts

PROMPTS = "three red circles\n\n  a blue star\r\nein grüner Würfel\n".encode()


def quiet(_):
    pass


@given(mangled(PROMPTS))
def test_prompt_files(scratch, data):
    (scratch / "prompts.txt").write_bytes(data)
    found = refuses_clearly(read_prompts, scratch / "prompts.txt", quiet)
    assert found is None or all(prompt == prompt.strip() != "" for prompt in found)


@given(st.lists(texts, max_size=3))
def test_prompts_on_the_command_line(words):
    found = refuses_clearly(gather, words, None, quiet)
    assert found is None or len(set(found)) == len(found)


@given(st.lists(texts.map(str.strip).filter(bool), min_size=1, unique=True))
def test_prompts_that_are_accepted_come_back_from_a_file(scratch, words):
    prompts = [p for p in words if refuses_clearly(check_prompt, p) and not set(p) & {"\n", "\r"}]
    if prompts:
        (scratch / "p.txt").write_text("\n".join(prompts), encoding="utf-8", newline="\n")
        assert read_prompts(scratch / "p.txt", quiet) == prompts


@given(
    mangled(PROMPTS)
    | mangled(b'{"prompt": "a cube", "judged_as": "one cube"}\n')
    | documents({"prompt": "a cube", "judged_as": ""})
)
def test_prompts_of_trainings(scratch, data):
    (scratch / "training.txt").write_bytes(data)
    refuses_clearly(read_training_prompts, str(scratch / "training.txt"))


@given(st.text("0123456789²٣:, -counting", max_size=12) | texts)
def test_prompts_of_shapeworld_by_name(rest):
    refuses_clearly(read_training_prompts, f"shapeworld:{rest}")


CONFIGS = {name: find_trainer(name).config for name in TRAINERS}
YAML = b"""\
model: a/folder
max_steps: 20
learning_rate: 1.0e-5
rewards: {shapeworld: 1.0, image-reward: 0.5}
renderer: {name: shapeworld, steps: 4}
prompts: shapeworld:8
data: data.jsonl
"""


@pytest.mark.parametrize("name", TRAINERS)
@given(
    data=mangled(YAML), words=st.lists(st.text("max_steps=0.1: ${}[]&*!\n", max_size=12) | texts, max_size=2)
)
def test_configs_of_trainings(scratch, name, data, words):
    (scratch / "training.yaml").write_bytes(data)
    refuses_clearly(load_config, CONFIGS[name], scratch / "training.yaml", words)


@pytest.mark.parametrize("name", TRAINERS)
@given(data=st.data())
def test_a_changed_config_is_read_or_refused_and_a_saved_one_comes_back(scratch, name, data):
    config = CONFIGS[name]
    (file, *_) = sorted(find_configs(name))
    before = load_config(config, file)
    values = data.draw(changed(before.model_dump(mode="json")))
    if isinstance(values, dict):
        made = refuses_clearly(parse_config, config, values, "the settings")
        if made is not None:
            (scratch / "saved.yaml").write_text(save_config(made), encoding="utf-8")
            assert load_config(config, scratch / "saved.yaml") == made


def find_configs(name):
    from pathlib import Path

    import reprise

    folder = Path(reprise.__file__).parent / "backend" / "training"
    return (folder / TRAINERS[name].split(".")[2] / "configs").glob(
        f"{name.partition('-')[2]}*.yaml" if name.startswith("prip") else "*.yaml"
    )


ROWS = b"""\
base: &base {best_of: 8, prune: halving}
more: {<<: *base, reflect: 2, correction: image to image, strength: 0.5}
loras: {lora: [a, b], rewriter: none}
"""
ROW = {"best_of": 8, "prune": "potential:0.3", "reflect": 1, "rewriter": ["a", "b"], "strength": 0.5}


@given(mangled(ROWS) | changed({"a": ROW}).map(as_json))
def test_rows_of_an_evaluation(scratch, data):
    (scratch / "rows.yaml").write_bytes(data)
    rows = refuses_clearly(read_rows, scratch / "rows.yaml")
    assert rows is None or all(isinstance(row, TableRow) for row in rows.values())


TABLE = b'image,prompt,score,seed\na.png,"a cube, red",0.5,7\na.png,a ball,1e3,\n'
LINE = {"image": "a.png", "prompt": "a cube", "score": 0.5, "drawn_as": "a red cube", "seed": 7}


@given(mangled(TABLE) | changed(list(LINE.items())).map(lambda rows: str(rows).encode("utf-8", "replace")))
def test_tables_in_csv(scratch, data):
    (scratch / "scores.csv").write_bytes(data)
    refuses_clearly(lambda path: list(read_table(path, "taste")), scratch / "scores.csv")


@given(documents(LINE))
def test_tables_in_json_lines(scratch, data):
    (scratch / "scores.jsonl").write_bytes(data)
    refuses_clearly(lambda path: list(read_table(path, "taste")), scratch / "scores.jsonl")


LOG = {"prompt": "a cube", "system": "a red cube", "image": "a.png", "scores": {"taste": 0.5}}


@given(documents(LOG))
def test_logs_of_pictures(scratch, data):
    (scratch / "log.jsonl").write_bytes(data)
    refuses_clearly(picture_log.read_log, scratch / "log.jsonl")
    refuses_clearly(picture_log.read_source, str(scratch / "log.jsonl"))


@given(documents({"a.png": {"p": "a cube", "se": 1}, "b.png": {"p": ""}}))
def test_parts_of_diffusiondb(scratch, data):
    folder = scratch / "diffusiondb"
    folder.mkdir(exist_ok=True)
    (folder / "part-000001.json").write_bytes(data)
    refuses_clearly(picture_log.read_log, folder)


@given(documents({"prompt": "a cube", "reason": "one thing", "rewrite": "a red cube", "critique": None}))
def test_examples_of_rewrites(scratch, data):
    (scratch / "examples.jsonl").write_bytes(data)
    refuses_clearly(read_examples, scratch / "examples.jsonl")


@given(documents({"made": ["x"]}))
def test_answers_kept_by_data_rewrites(scratch, data):
    (scratch / "begun.json").write_bytes(data)
    refuses_clearly(_read_info, scratch / "begun.json")
    (scratch / "answers.jsonl").write_bytes(data + b"\n")
    refuses_clearly(lambda path: list(_read_answers(path)), scratch / "answers.jsonl")


CASE = {
    "tag": "position",
    "include": [
        {"class": "cow", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    ],
    "exclude": [{"class": "cow", "count": 3}],
    "prompt": "a dog left of a red cow",
}


@given(documents(CASE))
def test_genevals_metadata(scratch, data):
    (scratch / "metadata.jsonl").write_bytes(data)
    refuses_clearly(read_cases, scratch / "metadata.jsonl")


def test_the_valid_documents_are_valid(scratch):
    """Else the tests above would only try what is refused at once."""
    from PIL import Image

    Image.new("RGB", (4, 4)).save(scratch / "a.png")
    for name, read, data in (
        ("scores.csv", lambda path: list(read_table(path, "taste")), TABLE),
        ("scores.jsonl", lambda path: list(read_table(path, "taste")), as_json(LINE)),
        ("log.jsonl", picture_log.read_log, as_json(LOG)),
        ("rows.yaml", read_rows, ROWS),
        ("metadata.jsonl", read_cases, as_json(CASE)),
        ("prompts.txt", lambda path: read_prompts(path, quiet), PROMPTS),
    ):
        (scratch / name).write_bytes(data)
        assert read(scratch / name)
    assert json.loads(as_json(ROW))
