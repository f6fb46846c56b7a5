"""A judge's range and direction for the views."""

import json
import math

from reprise.backend.core.types import RewardSpec
from reprise.nodes.reports import score_scale


def test_an_infinite_range_can_be_written_as_json():
    told = score_scale(RewardSpec("distance", 0.0, math.inf, higher_is_better=False))
    assert told == {"higher_is_better": False, "low": 0.0, "high": None}
    json.dumps(told, allow_nan=False)
