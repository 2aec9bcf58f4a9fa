"""Claims frozen before the first run, and what a report says about each change since."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnexp.analysis.claims import Claim, more_than
from cnnexp.analysis.descriptions import describe, hash_values
from cnnexp.analysis.estimates import difference, within
from cnnexp.analysis.frozen import NEVER, FrozenClaims, Record, describe_claim, read_records, write_record
from cnnexp.core.user_code import execute_file
from cnnexp.store.files import write_json, write_once

SHARED, DENSE = {"model.tying": "shared"}, {"model.tying": "dense"}
CLAIM = Claim(
    sentence="It is better.",
    source="a post",
    quantity="difference",
    estimate=difference(SHARED, DENSE),
    expected=more_than(0.02),
)
RECORD = Record(
    seed_set="first",
    size="small",
    date="2026-11-26T10:00:00+00:00",
    ended=0,
    seeds=[0, 1, 2],
    runs=["a", "b", "c"],
    cells=["cell"],
    protocol={"train.steps": ["400"]},
    claims=[describe_claim(CLAIM, None)],
)
RUNS = {"a": 0, "b": 1, "c": 2}
LATER = {"date": "2026-11-27T10:00:00+00:00", "ended": 3}


@pytest.fixture
def changes(tmp_path: Path) -> Callable[..., str]:
    """Write records, and return what a report says about a claim."""

    def compare(*records: Record, claim: Claim = CLAIM, runs: dict[str, int] = RUNS, **more: Any) -> str:
        for record in records:
            write_record(tmp_path, record)
        return "; ".join(FrozenClaims(tmp_path, "first", runs, [claim], **more).judge_freeze(claim).changes)

    return compare


def test_an_unchanged_claim_counts_and_has_a_date_and_a_hash(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    freeze = FrozenClaims(tmp_path, "first", RUNS, [CLAIM]).judge_freeze(CLAIM)
    assert freeze.changes == () and freeze.date == "2026-11-26"
    assert freeze.short_hash == RECORD.hash_claim(RECORD.claims[0]) and len(freeze.short_hash) == 7
    other = replace(RECORD, seeds=[0, 1])
    assert other.hash_claim(other.claims[0]) != freeze.short_hash


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"expected": more_than(0.01)}, "expected: above +2.0 points -> above +1.0 points"),
        (
            {"expected": more_than(0.02), "unit": ""},
            "expected: above +2.0 points -> above 0.02; unit: points -> ",
        ),
        (
            {"estimate": difference(SHARED, DENSE, "gap/accuracy")},
            "estimate metric: test/accuracy -> gap/accuracy",
        ),
        (
            {"estimate": difference(SHARED, {"model.tying": "local"})},
            "estimate smaller.model.tying: dense -> local",
        ),
        ({"quantity": "lead"}, "measured by: difference -> lead"),
        ({"sentence": "It is far better."}, "sentence, which was 'It is better.'"),
        (
            {"sentence": "It is worse.", "estimate": difference(DENSE, SHARED)},
            "added after 3 runs had ended",
        ),
    ],
)
def test_a_changed_claim_is_exploratory_with_the_field_that_changed(
    changes: Callable[..., str], changed: dict[str, Any], expected: str
) -> None:
    assert changes(RECORD, claim=replace(CLAIM, **changed)) == expected


def test_another_metric_changes_the_claim(changes: Callable[..., str]) -> None:
    assert changes(RECORD, metric="top5") == "metric: the default -> top5"


def test_without_a_record_of_its_set_a_claim_was_never_frozen(changes: Callable[..., str]) -> None:
    assert changes() == NEVER
    assert changes(replace(RECORD, seed_set="confirm")) == NEVER


def test_a_record_that_was_made_or_edited_afterwards_does_not_count(
    changes: Callable[..., str], tmp_path: Path
) -> None:
    assert changes(replace(RECORD, ended=3)) == "frozen after 3 runs had ended"
    (path,) = (tmp_path / "claims").glob("*.json")
    values = json.loads(path.read_text())
    write_json(path, {**values, "ended": 0, "claims": [{**values["claims"][0], "unit": "x"}]})
    assert changes() == NEVER


def test_the_first_of_two_processes_that_freeze_the_same_claims_is_kept(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    write_record(tmp_path, replace(RECORD, **LATER))
    assert [record.date for record in read_records(tmp_path, "first")] == [RECORD.date]
    assert len(list((tmp_path / "claims").iterdir())) == 1


def test_of_many_threads_that_write_a_record_one_does(tmp_path: Path) -> None:
    path, barrier = tmp_path / "claims" / "record.json", threading.Barrier(8)

    def write(number: int) -> bytes:
        barrier.wait()
        write_once(path, str(number).encode())
        return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        contents = set(pool.map(write, range(8)))
    assert len(contents) == 1 and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "values",
    [{}, {"claims": "x"}, {"claims": [{}]}, {"claims": []}, {"seeds": ["x"]}, {"more": 1}, {"ended": None}],
)
def test_records_of_somebody_else_are_data(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "claims").mkdir()
    record = {**(asdict(RECORD) if values else {}), **values}
    identity = hash_values({key: value for key, value in record.items() if key not in ("date", "ended")})
    write_json(tmp_path / "claims" / f"{identity}.json", record)
    assert read_records(tmp_path, "first") == []
    (tmp_path / "claims" / "text.json").write_text("{")
    dropped = {**RECORD.claims[0], "sentence": "\x1b[2J", "estimate": 1}
    write_record(tmp_path, replace(RECORD, date="\x1b[2J" * 9, claims=[*RECORD.claims, dropped]))
    frozen = FrozenClaims(tmp_path, "first", RUNS, [CLAIM])
    assert "\x1b" not in f"{frozen.judge_freeze(CLAIM)} {frozen.list_dropped()}"


def test_a_claim_that_was_added_later_says_when(changes: Callable[..., str]) -> None:
    new = replace(CLAIM, sentence="It is worse.", estimate=difference(DENSE, SHARED))
    later = replace(RECORD, **LATER, claims=[*RECORD.claims, describe_claim(new, None)])
    assert changes(RECORD, later, claim=new) == "added after 3 runs had ended"


def test_added_seeds_are_stated_and_paid_for_but_missing_ones_are_marked(
    changes: Callable[..., str], tmp_path: Path
) -> None:
    assert changes(RECORD, runs={"a": 0, "b": 1}) == "seeds 0–2 -> 0–1"
    more = replace(RECORD, **LATER, seeds=[3, 4], runs=["d", "e"])
    assert changes(more, runs={**RUNS, "d": 3, "e": 4}) == ""
    frozen = FrozenClaims(tmp_path, "first", {**RUNS, "d": 3, "e": 4}, [CLAIM])
    assert frozen.looks == 2 and frozen.confidence == pytest.approx(0.975)
    (line,) = frozen.describe_added_seeds()
    assert line.startswith("Seeds 3–4 were added on 2026-11-27, after 3 runs had ended;")


def test_seeds_that_start_before_any_run_has_ended_are_no_second_look(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    write_record(tmp_path, replace(RECORD, date=LATER["date"], seeds=[3], runs=["d"]))
    frozen = FrozenClaims(tmp_path, "first", {**RUNS, "d": 3}, [CLAIM])
    assert frozen.looks == 1 and frozen.judge_freeze(CLAIM).changes == ()


def test_runs_of_no_record_and_a_changed_protocol_are_marked(changes: Callable[..., str]) -> None:
    assert changes(RECORD, runs={**RUNS, "x": 2}) == "1 run of 4 in no record"
    longer = {"train.steps": ["800"]}
    later = replace(RECORD, **LATER, runs=["x"], seeds=[2], cells=["new"], protocol=longer)
    assert changes(later, runs={**RUNS, "x": 2}) == "protocol: train.steps 400 -> 400, 800"


def test_each_size_of_an_experiment_is_a_sweep_of_its_own(changes: Callable[..., str]) -> None:
    paper = replace(RECORD, date=LATER["date"], size="paper", runs=["x"], seeds=[5], cells=["new"])
    assert changes(RECORD, paper) == changes(runs={"x": 5}) == changes(runs={**RUNS, "x": 5}) == ""


def test_claims_that_were_dropped_are_listed(tmp_path: Path) -> None:
    other = replace(CLAIM, sentence="It is worse.", estimate=difference(DENSE, SHARED))
    write_record(tmp_path, replace(RECORD, claims=[describe_claim(one, None) for one in (CLAIM, other)]))
    assert FrozenClaims(tmp_path, "first", RUNS, [CLAIM]).list_dropped() == ["It is worse."]
    assert FrozenClaims(tmp_path, "first", RUNS, [CLAIM, other]).list_dropped() == []


SOURCE = """
import numpy as np
LIMIT = 3

def helper(values):
    return values.mean()

def estimate(table):
    \"\"\"Compute.\"\"\"
    return np.array([helper(table) - LIMIT])
"""


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ('"""Compute."""', '"""Compute it."""\n    # a comment', True),
        ("import numpy", "import math\nimport numpy", True),
        ("- LIMIT", "+ LIMIT", False),
        ("LIMIT = 3", "LIMIT = 4", False),
        (".mean()", ".max()", False),
    ],
)
def test_the_hash_of_a_function_covers_what_it_computes_and_no_layout(
    tmp_path: Path, old: str, new: str, is_same: bool
) -> None:
    hashes = []
    for number, text in enumerate((SOURCE, SOURCE.replace(old, new))):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "mine.py"
        path.write_text(text)
        hashes.append(describe(within(SHARED, execute_file(path).estimate)))
    assert hashes[0]["estimate"]["function"] == "mine.estimate"
    assert (hashes[0] == hashes[1]) == is_same


def test_functions_made_in_one_line_differ_by_what_they_close_over() -> None:
    def shift(number: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda values: values + number

    assert describe(shift(1.0)) == describe(shift(1.0)) != describe(shift(2.0))


def test_values_that_a_frozen_rule_added_belong_to_the_protocol(changes: Callable[..., str]) -> None:
    planned = replace(RECORD, extend=2)
    protocol = {"optim.learning_rate": ["0.1", "0.3"]}
    runs = {**RUNS, "d": 0, "e": 1, "f": 2}
    extended = {**LATER, "runs": list(runs), "cells": ["cell", "next"], "protocol": protocol}
    by_rule = replace(planned, **extended, added=["next"])
    assert changes(planned, by_rule, runs=runs) == ""
    by_hand = replace(planned, **extended, added=[])
    assert changes(by_hand, runs=runs) == "protocol: optim.learning_rate absent -> 0.1, 0.3"


def test_a_rule_counts_only_with_the_number_of_rounds_that_was_frozen(changes: Callable[..., str]) -> None:
    extended = replace(RECORD, **LATER, extend=2, cells=["cell", "next"], added=["next"])
    assert changes(RECORD, extended) == "protocol: tune.extend 0 -> 2"


def test_records_from_before_the_rule_keep_their_hash(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    (path,) = (tmp_path / "claims").iterdir()
    values = asdict(RECORD)
    del values["extend"], values["added"]
    assert path.stem == hash_values({k: v for k, v in values.items() if k not in ("date", "ended")})
    write_json(path, values)
    assert read_records(tmp_path, "first") == [RECORD]
