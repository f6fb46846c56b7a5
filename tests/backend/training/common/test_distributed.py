"""Several processes of torchrun and accelerate: the run is the one of a single process, and ends as one."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from reprise.backend.cli import train
from reprise.backend.core.errors import Unsupported
from reprise.backend.storage.files import read_lines
from reprise.backend.training.common import distributed
from reprise.backend.training.grpo import train as grpo
from reprise.backend.training.grpo.config import GrpoConfig
from reprise.backend.training.sft import train as sft
from reprise.backend.training.sft.config import SftConfig

from ..conftest import ROWS

ROOT = Path(grpo.__file__).parents[3]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
# What accelerate launch takes for two processes without MPI, also where there is no GPU.
ACCELERATE = (
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
)
WORLD = "tests.backend.training.command"


def launch(launcher, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


def said(ended):
    """What the command itself says on stderr when it fails; a traceback of its own would be a second one."""
    assert ended.stderr.count("Traceback") == 1, ended.stderr  # the launcher's
    return [line for line in ended.stderr.splitlines() if line.startswith("reprise: ")]


@pytest.fixture(scope="module")
def values(taught, prompts, tmp_path_factory):
    held_out = tmp_path_factory.mktemp("held-out") / "held-out.txt"
    held_out.write_text("a square\na circle\na triangle\n")
    return {
        "model": str(taught),
        "prompts": str(prompts),
        "eval_prompts": str(held_out),
        "renderer": {"name": "words"},
        "rewards": {"redness": 1.0, "structure": 0.5},
        "held_out": ["blueness"],
        "patience": 0,
        "prompts_per_step": 4,
        "rewrites": 2,
        "batch_size": 4,
        "std_floor": 0.1,
        "resample": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "warmup_ratio": 0.0,
        "scheduler": "linear",
        "beta": 0.05,
        "max_new_tokens": 32,
        "gradient_checkpointing": False,
        "device": "cpu",
        "save_every": 1,
        "eval_every": 2,
    }


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def apart(one, other):
    """The largest difference of two rewriters' weights."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def test_two_processes_take_the_steps_of_one_even_killed_and_resumed(values, taught, tmp_path):
    """The same rollouts and, within the rounding of sums, weights; groups without signal are replaced."""
    alone, run = tmp_path / "alone", tmp_path / "run"
    grpo.train(GrpoConfig(**values), alone, log=lambda line: None)
    config = write(tmp_path / "config.yaml", values)
    killed = launch(
        TORCHRUN, "-m", WORLD, "train", "grpo", config, "--out", run, REPRISE_TEST_END="killed 1 2"
    )
    [line] = said(killed)
    assert killed.returncode and line.endswith(f"go on with: reprise train grpo --resume {run}")
    assert "exitcode  : -9" in killed.stderr and not (run / "final").exists()
    resumed = launch(TORCHRUN, "-m", WORLD, "train", "grpo", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == f"{run / 'final'}\n" and resumed.stderr.count("step 2/3") == 1

    assert apart(run / "final", alone / "final") < 2e-5 < apart(alone / "final", taught)
    assert apart(run / "best", alone / "best") < 2e-5
    records = [read_lines(folder / "rollouts" / "rollouts.jsonl") for folder in (run, alone)]
    assert len(records[0]) == len(records[1]) > 3 * 8  # 4 groups of 2 in each step, and those replaced
    for one, other in zip(*records):
        for key in ("advantage", "scores"):
            assert one.pop(key, None) == pytest.approx(other.pop(key, None), abs=1e-5)
        assert one == other
    for one, other in zip(*(read_lines(folder / "metrics.jsonl") for folder in (run, alone)), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["ratio_off"] < 1e-3
        for key in ("step", "reward", "zero_variance", "replaced", "words", "learning_rate"):
            assert one[key] == pytest.approx(other[key], abs=1e-6)
    evaluations = [read_lines(folder / "evaluations.jsonl") for folder in (run, alone)]
    for one, other in zip(*evaluations, strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert one["held-out/redness"] == pytest.approx(other["held-out/redness"], abs=1e-6)
        assert [s["rewrite"] for s in one["samples"]] == [s["rewrite"] for s in other["samples"]]


@pytest.mark.parametrize(
    ("changes", "end", "message", "code"),
    [
        ({"batch_size": 1}, None, "set it to a multiple of 2", 2),
        (
            {"rewards": {"fails-always": 1, "structure": 1}},
            None,
            "'fails-always' failed: .*the judge is down",
            1,
        ),
        ({}, "error 1 1", "no room on this GPU", 1),
    ],
)
def test_a_failure_ends_all_processes_with_one_line_and_its_exit_code(
    changes, end, message, code, values, tmp_path
):
    config = write(tmp_path / "config.yaml", {**values, "eval_prompts": None, **changes})
    run = tmp_path / "run"
    ended = launch(
        TORCHRUN,
        "-m",
        WORLD,
        "train",
        "grpo",
        config,
        "--out",
        run,
        **({"REPRISE_TEST_END": end} if end else {}),
    )
    [line] = said(ended)
    assert re.search(message, line), line
    assert f"exitcode  : {code} " in ended.stderr.split("Root Cause")[1]
    assert not run.exists() or code == 1  # what is refused leaves nothing


def test_ctrl_c_ends_all_with_one_line(values, tmp_path):
    config = write(tmp_path / "config.yaml", {**values, "eval_prompts": None})
    run = tmp_path / "run"
    ended = launch(
        TORCHRUN, "-m", WORLD, "train", "grpo", config, "--out", run, REPRISE_TEST_END="stopped 1 2"
    )
    assert said(ended) == [f"reprise: stopped; go on with: reprise train grpo --resume {run}"]
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == [1]


def test_supervised_fine_tuning_by_accelerate(taught, tmp_path):
    """Two epochs of three batches: who gets which examples is right, and again in the second epoch."""
    data = tmp_path / "sft.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)) + "\n")
    values = {
        "model": str(taught),
        "data": str(data),
        "eval_data": str(data),
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 96,
        "max_new_tokens": 32,
        "device": "cpu",
        "save_every": 3,
        "log_every": 1,
        "lora": {"r": 2},
    }
    alone = sft.train(SftConfig(**values), tmp_path / "alone", log=lambda line: None)
    config = write(tmp_path / "config.yaml", values)
    ended = launch(ACCELERATE, "-m", "reprise", "train", "sft", config, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    [run] = (tmp_path / "runs").iterdir()  # its name is the same in both
    assert ended.stdout == f"{run.relative_to(tmp_path) / 'final'}\n"
    assert apart(run / "final", alone) < 2e-5 < apart(alone, taught)
    records = [read_lines(folder / "metrics.jsonl") for folder in (run, tmp_path / "alone")]
    for key in ("step", "loss", "eval_loss"):
        one, other = ([row[key] for row in record if key in row] for record in records)
        assert one == pytest.approx(other, abs=1e-5)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in (run / "checkpoints" / "checkpoint-3").iterdir()
    }


PROGRAM = """
import json, sys
from reprise.backend.core.errors import BadInput, RewardFailed
from reprise.backend.training.common import distributed as ranks

def fails(part):
    if ranks.rank() == 1:
        raise RewardFailed("redness", "it is down")
    return part

def refuses():
    raise BadInput("no")

found = {"index": ranks.rank(), "shares": [list(ranks.local_share(range(n))) for n in (4, 3, 1, 0)],
         "dealt": ranks.scatter("abc", lambda part: [letter.upper() for letter in part]),
         "main": ranks.run_on_main(ranks.rank), "total": ranks.all_sum(1, 10 * ranks.rank()),
         "part": ranks.per_process(6)}
for name, work in {"one": lambda: ranks.scatter("ab", fails), "on_main": lambda: ranks.run_on_main(refuses),
                   "odd": lambda: ranks.per_process(3)}.items():
    try:
        work()
    except Exception as error:
        found[name] = [type(error).__name__, str(error), error.exit_code]
found["first"] = ranks.first_to_fail()
ranks.all_sum()  # nobody leaves before all have asked
ranks.leave()
open(sys.argv[1] + str(found["index"]), "w").write(json.dumps(found))
"""


@pytest.mark.parametrize("by", ["torchrun", "mpi"])
def test_processes_share_items_and_results(by, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "rank"
    program.write_text(PROGRAM)
    if by == "torchrun":
        ended = launch(TORCHRUN, program, out, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    else:  # as accelerate launch --cpu --mpirun_hostfile has mpirun do it
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        made = [
            subprocess.Popen(
                [sys.executable, program, out],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "OMPI_COMM_WORLD_SIZE": "2",
                    "OMPI_COMM_WORLD_RANK": str(rank),
                    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                    "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "ACCELERATE_USE_CPU": "true",
                },
            )
            for rank in range(2)
        ]
        assert [one.wait(300) for one in made] == [0, 0]
    found = [json.loads(Path(f"{out}{rank}").read_text()) for rank in range(2)]
    assert [one["shares"] for one in found] == [[[0, 1], [0], [], []], [[2, 3], [1, 2], [0], []]]
    for one in found:
        assert (one["dealt"], one["main"], one["total"], one["part"]) == (["A", "B", "C"], 0, [2, 10], 3)
        assert one["odd"][0] == "BadInput" and "multiple of 2" in one["odd"][1]
    failed = "reward 'redness' failed: it is down; no score was recorded"
    assert found[1]["one"] == ["RewardFailed", failed, 1]
    assert found[0]["one"] == ["PeerFailed", f"another process of this run failed: {failed}", 1]
    assert found[0]["on_main"] == ["BadInput", "no", 2]
    assert found[1]["on_main"] == ["PeerFailed", "another process of this run failed: no", 2]
    assert sorted(one["first"] for one in found) == [False, True]


def test_one_process_makes_plain_calls(monkeypatch):
    monkeypatch.setattr(distributed, "_gather", None)
    assert (
        distributed.world_size(),
        distributed.rank(),
        distributed.is_main(),
        distributed.per_process(7),
    ) == (
        1,
        0,
        True,
        7,
    )
    items = [1, 2, 3]
    assert distributed.local_share(items) is items and distributed.scatter(items, lambda part: part) is items
    assert distributed.run_on_main(lambda: 5) == 5 and distributed.all_sum(1, 2) == (1, 2)
    assert not torch.distributed.is_initialized()


def test_a_trainer_of_one_process_is_refused_to_several(monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(sft, "SEVERAL", False)
    with pytest.raises(Unsupported, match="trainer 'sft' is one process"):
        train._train("sft", ["model=m", "data=d"], None, None)


def test_impossible_ways_of_launching(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(Unsupported, match="FSDP would split"):
        distributed.join()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Unsupported, match="2 processes want a GPU each, and this machine has 1"):
        distributed.use_gpu("auto")
    assert not distributed.use_gpu("cpu")


@pytest.mark.parametrize(("processes", "code", "printed"), [("2", 3, "said"), ("1", 0, "said and done")])
def test_a_failed_process_ends_without_its_destructors(processes, code, printed):
    """Gloo's threads may abort at Python's own end, with an exit code of theirs."""
    source = (
        "import atexit; from reprise.backend.training.common import distributed; print('said', end=''); "
        "atexit.register(print, ' and done', end=''); distributed.exit_now(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "WORLD_SIZE": processes},
    )
    assert (ended.returncode, ended.stdout) == (code, printed), ended.stderr
