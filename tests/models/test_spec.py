"""`model.match` chooses widths that keep the count of a network, or refuses with the nearest count."""

from typing import Any

import numpy as np
import pytest

from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.models.spec import describe_matching, is_matched, match_widths, specify_network
from tests.conftest import Configure

NET: dict[str, Any] = {"features": [16, 32], "kernel_size": [5, 3]}


def list_widths(config: RunConfig) -> list[int]:
    return [layer.geometry.features for layer in specify_network(config) if layer.name.startswith("conv")]


def test_counts_are_matched_within_five_percent_or_refused_with_the_nearest(configure: Configure) -> None:
    def configure_match(tying: str, match_tying: str, field: str = "params") -> RunConfig:
        model = NET | {"tying": tying, "match": field, "match_tying": match_tying}
        return configure(model=model, data={"canvas": 16})

    for field in ("params", "macs"):
        for tying in ("dense", "local", "shared", "tiled(2)", "low_rank(2)"):
            ratio = describe_matching(configure_match(tying, "dense", field))["match/ratio"]
            assert abs(ratio - 1) <= 0.05, (field, tying)
    assert abs(describe_matching(configure_match("local", "shared"))["match/ratio"] - 1) <= 0.05
    message = (
        r"^model\.match=params: dense has at least 69,804 params \(model\.features=\[1,1\]\), 6\.85 times "
        r"the 10,186 of shared; allowed: within 5% of it; use model\.match_tying=dense, which widens the "
        r"other networks, or larger model\.features$"
    )
    with pytest.raises(UsageError, match=message):
        specify_network(configure_match("dense", "shared"))


def test_all_widths_have_one_factor_where_it_reaches_the_target(configure: Configure) -> None:
    model = {"features": [8, 16], "match": "params", "match_tying": "low_rank(2)"}
    assert list_widths(configure(model=model, data={"canvas": 16})) == [10, 20]


def test_the_target_is_reached_if_any_widths_reach_it() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        pairs, single = random.choice([9, 144, 576, 3000], 3), random.choice([1, 64, 256], 3)

        def count(widths: tuple[int, ...], pairs: Any = pairs, single: Any = single) -> int:
            ends = np.array([1, *widths, 10])
            return int((pairs * ends[:-1] * ends[1:]).sum() + (single * ends[1:]).sum())

        target = int(count((1, 1)) * random.uniform(0.8, 20))
        reachable = any(is_matched(count((a, b)), target) for a in range(1, 60) for b in range(1, 200))
        widths = random.choice([1, 4, 16, 32], 2).tolist()
        assert is_matched(count(match_widths(widths, count, target)), target) == reachable


def test_of_exact_widths_those_nearest_to_the_proportions_are_chosen() -> None:
    def count(widths: tuple[int, ...]) -> int:
        return 100 * widths[0] + widths[0] * widths[1]

    # One factor gives 3 x 3 (309, too few) or 4 x 4 (416, too many); (3, 20), (2, 80), (1, 260) are exact.
    assert match_widths([8, 8], count, 360) == (3, 20)


def test_two_widths_are_changed_where_one_cannot_reach_the_target() -> None:
    def count(widths: tuple[int, ...]) -> int:
        return 576 * widths[0] + widths[0] * widths[1] + 64 * widths[1] + 250 * widths[1] + 10

    assert is_matched(count(match_widths([32, 4], count, 3563)), 3563)


def test_the_target_is_the_count_of_the_other_tying(configure: Configure) -> None:
    config = configure(model=NET | {"tying": "local", "match": "macs", "match_tying": "shared"})
    other = specify_network(configure(model=NET))
    assert describe_matching(config)["match/target"] == sum(layer.counts.macs for layer in other)
