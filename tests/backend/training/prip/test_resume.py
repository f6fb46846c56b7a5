"""PRIP's trainings are stopped, killed, and go on."""

import os
import signal
import subprocess
import sys

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.training.prip import decoder as prip_decoder

from .. import pictures
from ..conftest import half_write
from .stages import changed, rows, settings, train

RUNS = {
    "decoder": {},
    "encoder": {"gradient_checkpointing": True},
    "tower": {"preset": "shapeworld", "train_image": True, "max_steps": 6},
    "adapter": {"lora": {"r": 2, "alpha": 4, "dropout": 0.2}},
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", RUNS)
def test_killed_and_resumed_equals_never_killed(kind, tiny_preset, log, refiner, tmp_path, monkeypatch):
    monkeypatch.setattr(prip_decoder, "SETTLED", 0.5)  # killed before, at, and after
    stage = "encoder" if kind == "encoder" else "decoder"
    config = settings(stage, log, refiner, **{"max_steps": 5, **RUNS[kind]})
    whole = train(stage, config, tmp_path / "whole")
    for at in (1, 3, config.max_steps):

        def stop(line, at=at):
            if line.startswith(f"step {at}/"):
                raise Killed

        run = tmp_path / str(at)
        with pytest.raises(Killed):
            train(stage, config, run, log=stop)
        assert not (run / "final").exists()
        half_write(run, "weights.safetensors")
        said = []
        final = train(stage, config, run, resume=True, log=said.append)
        newest = (at - 1) // 2 * 2  # said before the step is saved
        assert ("from the start" if not newest else f"going on from checkpoint-{newest}") in " ".join(said)
        assert not changed(final, whole)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            found, expected = (
                [{**row, "seconds": 0} for row in rows(one, name)] for one in (run, tmp_path / "whole")
            )
            assert found == expected
        assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 2


PROGRAM = """
import json, os, signal, sys, torch
from pathlib import Path
from reprise.backend.training.prip.encoder import EncoderConfig, train
torch.set_num_threads(1)
import safetensors.torch
save, calls = safetensors.torch.save_file, []
def dying(tensors, path, *rest, **options):
    if Path(path).name == "optimizer.safetensors":
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    return save(tensors, path, *rest, **options)
safetensors.torch.save_file = dying
train(EncoderConfig(**json.loads(sys.stdin.read())), Path(sys.argv[1]), log=lambda line: None)
"""


def test_sigkill_while_a_checkpoint_is_written(log, refiner, tmp_path):
    config = settings("encoder", log, refiner)
    whole = train("encoder", config, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run")],
        input=config.model_dump_json(),
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    said = []
    final = train("encoder", config, tmp_path / "run", resume=True, log=said.append)
    assert "going on from checkpoint-2" in " ".join(said) and not changed(final, whole)


def test_a_finished_run_is_returned_and_runs_are_not_mixed_up(log, refiner, tmp_path):
    config = settings("encoder", log, refiner, max_steps=1)
    final = train("encoder", config, tmp_path)
    before = (final / "model.safetensors").stat().st_mtime_ns
    assert train("encoder", config, tmp_path, resume=True) == final
    assert (final / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(BadInput, match="--resume"):
        train("encoder", config, tmp_path)
    with pytest.raises(BadInput, match="other settings"):
        train("encoder", config.model_copy(update={"seed": 7}), tmp_path, resume=True)


def test_a_changed_log_stops_a_resumed_run(refiner, tmp_path):
    log = pictures.make(tmp_path / "log")
    config = settings("decoder", log, refiner)

    def stop(line):
        if line.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        train("decoder", config, tmp_path / "run", log=stop)
    lines, files = log.read_text(), sorted((log.parent / "pictures").iterdir())
    log.write_text(lines.replace(" white background", " pale background"))
    with pytest.raises(BadInput, match="or what it names, changed since .* began"):
        train("decoder", config, tmp_path / "run", resume=True)
    log.write_text(lines)
    for file in files:
        file.write_bytes(files[0].read_bytes())
    with pytest.raises(BadInput, match="or what it names, changed since .* began"):
        train("decoder", config, tmp_path / "run", resume=True)
