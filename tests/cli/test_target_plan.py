"""`cnnexp plan --target`, with a compiler that answers at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnnexp.sweep import targets
from cnnexp.sweep.targets import CompiledProgram, StackJob, Target
from cnnexp.training.program_costs import ProgramCost
from tests.conftest import call_cnnexp

TRAIN = ProgramCost(
    name="train",
    seconds=2.0,
    argument_bytes=10**9,
    output_bytes=0,
    temporary_bytes=0,
    flops=1.0,
    bytes_moved=1.0,
    step_cycles=None,
    not_priced={},
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def compile_for(target: Target, jobs: Sequence[StackJob]) -> Iterator[CompiledProgram]:
        """A local run needs 2 GB, a shared one 0.1 GB; a step of a run takes a million cycles."""
        for index, job in enumerate(jobs):
            runs = -(-job.runs // target.devices)
            each = 2 * 10**9 if job.config.model.tying == "local" else 10**8
            train = replace(TRAIN, step_cycles=10**6 * runs, not_priced={"gather": 3})
            yield CompiledProgram(job=index, name="train", cost=train)
            yield CompiledProgram(
                job=index, name="evaluate", cost=replace(TRAIN, name="evaluate", temporary_bytes=each * runs)
            )

    monkeypatch.setattr("cnnexp.cli.target_plan.compile_for", compile_for)
    monkeypatch.setattr(targets, "find_spec", lambda _: True)
    monkeypatch.chdir(tmp_path)

    def command(*words: str, code: int = 0) -> list[str]:
        assert call_cnnexp("plan", *words) == code
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out.splitlines()

    return command


def test_a_plan_for_a_target_prints_what_its_compiler_says_of_each_program(plan: Any) -> None:
    lines = plan("--target", "v5e:2x2", "model.tying=shared,local", "seed=range(40)")
    assert lines[0] == "v5e:2x2: stacks may use 13.5GB of each of 4 devices"
    assert lines[1].split("  ")[0] == "program" and "not priced" in lines[1]
    shared, local = lines[2].split(), lines[3].split()
    # 1 GB of images, and 10 runs of 0.1 GB on each device; a step takes 10 million cycles at 1.5 GHz.
    assert shared[:8] == ["tying=shared", "40", "40", "500", "2GB", "1,000,000", "6.67", "ms"]
    assert local[:5] == ["tying=local", "40", "20", "24", "11GB"]
    assert "each device computes" in lines[4] and "sweep.stacking=" in lines[4]  # the choice for a TPU
    assert "vector memory" in lines[4] or "so small" in lines[4] or "few channels" in lines[4]
    assert lines[-2].startswith("80 runs in 3 stacks of 2 programs")


def test_what_does_not_fit_on_a_target_is_refused_after_the_plan(
    plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(targets.CHIPS, "v5e", replace(targets.CHIPS["v5e"], memory_gb=2.0))
    lines = plan("--target", "v5e", "model.tying=shared,local", "seed=range(20)", code=2)
    assert [line.split()[3] for line in lines[2:4]] == ["7", "0"]
