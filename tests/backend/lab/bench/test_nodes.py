"""The nodes' benchmark: its arithmetic by hand, one run in a real ComfyUI, and its error without one."""

import json

import pytest
from typer.testing import CliRunner

from reprise.backend.core.errors import BadInput
from reprise.backend.lab.bench.nodes import bench, find_comfyui, result_of


def test_ratios_equal_those_computed_by_hand():
    found = {
        "import": 0.3,
        "pairs": {"128": [[1.0, 1.5], [1.0, 1.5], [2.0, 3.0]]},
        "interrupts": [[0.1, 0.4], [0.2, 0.4]],
        "comfyui": "0.33.0",
    }
    parm, stop, start = result_of(found, pairs=3, steps=16)["rows"]
    assert parm["overall"] == [1.5, 1.5, 1.5] and parm["cost"] == {"seconds": 1.5, "stock_seconds": 1.0}
    assert stop["overall"][0] == pytest.approx(0.375) and stop["cost"]["seconds"] == 0.2
    assert start["overall"] == [2.0, 2.0, 2.0] and "0.15 s" in start["name"]


def test_a_missing_comfyui_is_reported_with_its_path(monkeypatch, tmp_path):
    from reprise.backend.cli.main import app

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(BadInput, match="set COMFYUI_PATH"):
        find_comfyui()
    done = CliRunner().invoke(app, ["lab", "bench", "nodes", "--out", str(tmp_path / "out")])
    assert done.exit_code != 0


@pytest.mark.comfyui
def test_the_benchmark_runs_in_a_real_comfyui():
    try:
        find_comfyui()
    except BadInput as error:
        pytest.skip(str(error))
    result = bench(pairs=2, steps=2)
    assert [row["name"].split(",")[0] for row in result["rows"]] == [
        "PARM",
        "PARM",
        "interrupt to stop",
        "import of the pack",
    ]
    assert all(row["overall"][0] > 0 for row in result["rows"]) and json.dumps(result)
