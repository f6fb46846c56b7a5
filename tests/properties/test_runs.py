"""What commands write and read again, after somebody edited it: records, rollouts, preference stores."""

import json
from tempfile import mkdtemp

import pytest
from hypothesis import given

from reprise.backend.core.errors import RepriseError
from reprise.backend.preferences.mining import JUDGE_DATA, read_runs
from reprise.backend.preferences.pairing import PairMiner
from reprise.backend.preferences.store import Pair, RewritePair, Store, read_strikes
from reprise.backend.reports.build import prompt_view
from reprise.backend.storage.records import RECORD, Record, finished_record, load_record

from .inputs import changed, documents, mangled, refuses_clearly

RECORDED = {
    "prompt": "a cube",
    "rewrites": [{"reason": "r", "prompt": "a red cube", "rewriter": "reprompt", "fallback": None}],
    "candidates": [
        {
            "index": 0,
            "seed": 7,
            "prompt": "a red cube",
            "scores": {"shapeworld": 0.5},
            "score": 0.5,
            "image": "candidates/00-7.png",
            "preview_scores": {"2": 0.25},
        },
        {"index": 1, "seed": 8, "prompt": "a red cube", "pruned_at": 2, "preview": "previews/01-8.png"},
    ],
    "best": 0,
    "reflection": [
        {"round": 0, "verdict": "no", "critique": "c", "prompt": "p", "score": 0.5, "candidate": 0}
    ],
    "cost": {"denoiser_rows": 8, "denoiser_rows_full": 16, "judge_calls": 2, "seconds": {"total": 1.5}},
    "settings": {
        "renderer": "shapeworld",
        "judge": "shapeworld",
        "rewards": {"image-reward": 0.5},
        "steps": 8,
        "seed": 7,
    },
    "versions": {"reprise": "0.1.0"},
}


def mine(folder, store):
    """Every group of the runs in a folder, and the pairs in them."""
    miner = PairMiner(Store(store, create=True), by="prompt")
    for group in read_runs(folder, None, lambda line: None):
        miner.add_group(group)


@given(documents(RECORDED))
def test_records(scratch, data):
    folder = scratch / "render" / "a-cube"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_bytes(data)
    record = refuses_clearly(load_record, folder / RECORD)
    finished_record(folder, "a cube", RECORDED["settings"])
    if record is not None:
        assert Record.model_validate_json(record.to_json()) == record
        refuses_clearly(mine, scratch / "render", scratch / "store")


@given(changed({**RECORDED, "settings": {"seed": 7}}))
def test_a_record_that_is_read_can_be_shown(scratch, values):
    folder = scratch / "shown"
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_text(json.dumps(values))
    record = refuses_clearly(load_record, folder / RECORD)
    if record is not None and record.settings == {"seed": 7}:
        assert prompt_view(record, lambda name, side: None)["prompt"] == record.prompt


ROLLOUT = {
    "position": 0,
    "step": 1,
    "prompt": "a cube",
    "judged_as": "one cube",
    "variant": 0,
    "seeds": [7],
    "pictures": ["ab" * 32],
    "rewrite": "a red cube",
    "reason": "r",
    "scores": {"shapeworld": 0.5},
    "advantage": 0.5,
}
CONFIG = {"rewards": {"shapeworld": 1.0}, "renderer": {"name": "shapeworld"}, "max_steps": 1}


@given(
    documents(ROLLOUT),
    documents(CONFIG) | mangled(b"rewards: {shapeworld: 1.0}\nrenderer: {name: shapeworld}\n"),
)
def test_rollouts_of_a_training(scratch, rows, config):
    run = scratch / "run"
    (run / "rollouts").mkdir(parents=True, exist_ok=True)
    for text in (config, json.dumps(CONFIG).encode()):
        (run / "config.yaml").write_bytes(text)
        (run / "rollouts" / "rollouts.jsonl").write_bytes(rows + b"\n")
        refuses_clearly(mine, run, scratch / "store")


ROUND = {
    "prompt": "a cube",
    "seeds": [1, 2],
    "pictures": ["ab" * 32, "cd" * 32],
    "stored": {"ab" * 32: "ef" * 32},
    "scores": [{"shapeworld": 0.5}, {"shapeworld": 0.25}],
}


@given(documents(ROUND))
def test_rollouts_of_rounds(scratch, rows):
    run = scratch / "rounds"
    (run / "rounds" / "1").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(
        json.dumps({"model": "fake", "rounds": {"rewards": {"shapeworld": 1.0}}})
    )
    (run / "rounds" / "1" / "rollouts.jsonl").write_bytes(rows + b"\n")
    refuses_clearly(mine, run, scratch / "store")


JUDGED = {"key": json.dumps(["p", "a red cube", 7, 1]), "prompt": "a cube", "image": "ab" * 32, "score": 0.5}
STAMP = {
    "reward": "shapeworld",
    "spec": {"name": "shapeworld", "low": 0, "high": 1},
    "renderer": "shapeworld",
}


@given(documents(JUDGED), documents(STAMP))
def test_data_for_judges(scratch, rows, stamp):
    file = scratch / f"judge{JUDGE_DATA}"
    for text in (stamp, json.dumps(STAMP).encode()):
        file.with_suffix(".json").write_bytes(text)
        file.write_bytes(rows + b"\n")
        refuses_clearly(mine, file, scratch / "store")


SIDE = {"image": "ab" * 32, "drawn_as": "a red cube", "score": 0.5, "seed": 7, "scores": {"shapeworld": 0.5}}
OF_BOTH = {"prompt": "a cube", "reward": "shapeworld", "margin": 0.25, "source": "render", "run": "r"}
PAIR = {**OF_BOTH, "condition": "a red cube", "chosen": SIDE, "rejected": {**SIDE, "image": "cd" * 32}}
TEXT = {"reason": "r", "rewrite": "a red cube", "score": 0.5, "pictures": 2}
REWRITES = {**OF_BOTH, "chosen": TEXT, "rejected": {**TEXT, "rewrite": "a cube"}}


@given(documents(PAIR), documents(REWRITES), documents({"format": 1, "struck": ["ab" * 32], "kept": []}))
def test_preference_stores(scratch, pairs, rewrites, strikes):
    folder = scratch / "preferences"
    folder.mkdir(exist_ok=True)
    for name, data in (("pairs.jsonl", pairs), ("rewrites.jsonl", rewrites), ("strikes.json", strikes)):
        (folder / name).write_bytes(data)
    refuses_clearly(read_strikes, folder / "strikes.json")
    store = Store(folder)
    for read in (store.all_pairs, store.all_rewrites, store.statistics, store.pairs, store.rewrites):
        refuses_clearly(read)


@given(changed(PAIR) | changed(REWRITES))
def test_pairs_come_back_from_a_store(scratch, values):
    store = Store(mkdtemp(dir=scratch), create=True)
    for kind, add, read in (
        (Pair, store.add, store.all_pairs),
        (RewritePair, store.add_rewrites, store.all_rewrites),
    ):
        try:
            pair = kind.model_validate_json(json.dumps(values))
        except ValueError:
            continue
        add([pair])
        assert pair in read()


def test_the_valid_documents_are_valid(scratch):
    """Else the tests above would only try what is refused at once."""
    assert (
        Record.model_validate(RECORDED) and Pair.model_validate(PAIR) and RewritePair.model_validate(REWRITES)
    )
    for folder, name, row in (
        ("v/rollouts", "rollouts.jsonl", ROLLOUT),
        ("w/rounds/1", "rollouts.jsonl", ROUND),
    ):
        (scratch / folder).mkdir(parents=True)
        (scratch / folder / name).write_text(json.dumps(row) + "\n")
    (scratch / "v" / "config.yaml").write_text(json.dumps(CONFIG))
    (scratch / "w" / "config.yaml").write_text(json.dumps({"rounds": {"rewards": {"shapeworld": 1.0}}}))
    assert list(read_runs(scratch / "v", None, print)) and list(read_runs(scratch / "w", None, print))
    with pytest.raises(RepriseError):
        list(read_runs(scratch / "gone", None, print))
