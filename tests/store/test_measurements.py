"""Probes and evaluations on disk: what is not a number under a plain name is left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cnnexp.store.measurements import (
    EVALUATIONS,
    PROBES,
    Evaluation,
    read_evaluations,
    read_probes,
    write_evaluations,
    write_probes,
)
from cnnexp.store.measurements import _checksum as checksum  # of a file that somebody else wrote


def test_probes_are_read_as_they_were_written_without_what_is_not_finite(tmp_path: Path) -> None:
    assert read_probes(tmp_path) == {}
    write_probes(tmp_path, {"probe/a_1/near": 0.1, "probe/b": math.nan, "probe/c": math.inf})
    assert read_probes(tmp_path) == {"probe/a_1/near": 0.1}
    content = (tmp_path / PROBES).read_text()
    (tmp_path / PROBES).write_text(content.replace("0.1", "0.2"))
    assert read_probes(tmp_path) == {}


@pytest.mark.parametrize(
    "measures",
    [
        {"probe/x y": 1.0},
        {"probe/../x": 1.0},
        {"probe/x": "1"},
        {"probe/x": True},
        {"probe/x": [1.0]},
        {"test/accuracy": 1.0},
        [1.0],
        None,
    ],
)
def test_foreign_probes_are_left_out(tmp_path: Path, measures: Any) -> None:
    crc32 = checksum(measures if isinstance(measures, dict) else {})
    (tmp_path / PROBES).write_text(json.dumps({"measures": measures, "crc32": crc32}))
    assert read_probes(tmp_path) == {}


def test_an_evaluation_replaces_an_earlier_one_under_the_same_conditions(tmp_path: Path) -> None:
    def add(noise: float, accuracy: float) -> None:
        evaluation = Evaluation(
            conditions={"data.pixel_noise": noise}, metrics={"test/accuracy": accuracy, "test/loss": math.nan}
        )
        write_evaluations(tmp_path, {f"data.pixel_noise={noise}": evaluation})

    for noise, accuracy in ((0.1, 0.5), (0.2, 0.4), (0.1, 0.6)):
        add(noise, accuracy)
    read = {e.conditions["data.pixel_noise"]: e.metrics for e in read_evaluations(tmp_path)}
    assert read == {0.1: {"test/accuracy": 0.6}, 0.2: {"test/accuracy": 0.4}}
    lines = (tmp_path / EVALUATIONS).read_text().splitlines()
    (tmp_path / EVALUATIONS).write_text(lines[0].replace("0.6", "0.9") + "\n" + lines[1] + "\nnonsense\n")
    assert [e.conditions for e in read_evaluations(tmp_path)] == [{"data.pixel_noise": 0.2}]


@pytest.mark.parametrize(
    "conditions",
    [
        {"seed": 1},
        {"data.../x": 1},
        {"data.shift": [1]},
        {"data.shift": {"a": 1}},
        {"data.corrupt": "x" * 300},
        [],
    ],
)
def test_foreign_conditions_are_left_out(tmp_path: Path, conditions: Any) -> None:
    values = {"conditions": conditions, "metrics": {"test/accuracy": 1.0}}
    (tmp_path / EVALUATIONS).write_text(json.dumps(values | {"crc32": checksum(values)}) + "\n")
    assert read_evaluations(tmp_path) == []
