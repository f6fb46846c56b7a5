"""What the views are told of a judge."""

import json
import math

from reprise.backend.core.types import RewardSpec
from reprise.nodes.reports import score_scale


def test_a_range_goes_through_json_also_where_it_has_no_end():
    told = score_scale(RewardSpec("distance", 0.0, math.inf, higher_is_better=False))
    assert told == {"higher_is_better": False, "low": 0.0, "high": None}
    json.dumps(told, allow_nan=False)
