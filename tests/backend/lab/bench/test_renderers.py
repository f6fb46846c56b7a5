"""The benchmark of drawing with any pipeline: its arithmetic by hand, and one small run."""

import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.lab.bench.renderers import bench, result_of

from ...cli.conftest import reprise  # noqa: F401


def test_ratios_are_ours_over_theirs():
    spent = {"renderer": [2.0, 3.0], "pipeline": [2.0, 2.0], "preview": [0.3, 0.6], "vae": [0.25, 0.5]}
    result = result_of({"sana": spent})
    drawn, previewed = result["rows"]
    assert drawn["name"] == "sana, drawn" and drawn["overall"][0] == 1.25
    assert previewed["overall"][0] == 1.2 and previewed["cost"] == {"preview": 0.3, "vae": 0.25}
    assert result["tables"][0]["rows"] == [["sana", 1.0, 1.2, 250.0]]


def test_the_command_measures_a_pipeline(reprise, tmp_path):  # noqa: F811
    done = reprise(
        "lab",
        "bench",
        "renderers",
        "sana",
        "--size",
        "32",
        "--pairs",
        "1",
        "--steps",
        "2",
        "--out",
        "out",
        "--json",
    )
    rows = json.loads(done.out)["rows"]
    assert [row["name"] for row in rows] == ["sana, drawn", "sana, previewed"]
    # A preview contains the decode; and all was timed.
    assert rows[1]["overall"][0] > 1 and min(min(row["cost"].values()) for row in rows) > 0


def test_an_unknown_pipeline_is_named():
    with pytest.raises(BadInput, match="no tiny pipeline is called 'sanna'; there are .*sana"):
        bench(["sanna"])
