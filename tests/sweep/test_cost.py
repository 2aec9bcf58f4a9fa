"""The limit of the weights that a sweep stores."""

from collections.abc import Mapping
from types import SimpleNamespace

import jax
import pytest

from cnnexp.config import RunConfig
from cnnexp.sweep.cost import (
    GIGABYTE,
    bound_stack_bytes,
    choose_kept,
    largest_stack,
    limit_weights,
    weights_bytes,
)
from cnnexp.sweep.points import SweepPoint
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.program_costs import ProgramCost, StackCost
from cnnexp.training.setup import make_setup, name_weights
from cnnexp.training.train import init
from tests.conftest import Configure


def list_runs(configure: Configure, gb: float, keep: str = "last") -> dict[str, RunConfig]:
    configs = [
        configure(seed=seed, model={"tying": tying}, train={"keep": keep}, sweep={"max_weights_gb": gb})
        for tying in ("shared", "local")
        for seed in (0, 1, 2)
    ]
    return {config.run_id: config for config in configs}


def seeds_of(runs: Mapping[str, RunConfig], chosen: Mapping[str, int]) -> list[int]:
    return sorted(runs[run_id].seed for run_id in chosen)


def test_every_cell_keeps_its_first_seeds(configure: Configure) -> None:
    runs = list_runs(configure, 1.0)
    sizes = {run.model.model_dump()["tying"]: weights_bytes(run) for run in runs.values()}
    limit = 2 * sum(sizes.values()) / GIGABYTE
    kept = choose_kept(list_runs(configure, limit))
    assert seeds_of(runs, kept.sizes) == [0, 0, 1, 1] and seeds_of(runs, kept.refused) == [2, 2]
    assert "2 runs do not store weights" in kept.describe() and "4 of 6 runs" in kept.describe()
    everything = choose_kept(runs)
    assert not everything.refused and sum(everything.sizes.values()) == 3 * sum(sizes.values())
    assert choose_kept(list_runs(configure, 0.0)).sizes == {}
    assert (
        choose_kept(list_runs(configure, 1.0, "none")).describe() == "no weights are stored (train.keep=none)"
    )


def test_the_limit_changes_no_run_id(configure: Configure) -> None:
    points = [SweepPoint(config=config) for config in list_runs(configure, 0.0).values()]
    limited, _ = limit_weights(points)
    assert [p.config.run_id for p in limited] == [p.config.run_id for p in points]
    assert {p.config.train.keep for p in limited} == {"none"}


@pytest.mark.parametrize(
    "model",
    [{"norm": "batch", "tying": "local", "norm_tying": "same"}, {"connectivity": "random", "bias": "local"}],
    ids=str,
)
def test_the_size_is_that_of_the_arrays(configure: Configure, model: dict[str, object]) -> None:
    config = configure(model=model)
    setup = make_setup(config)
    arrays = name_weights(init(jax.random.key(0), Hyperparameters.from_config(config), setup))
    assert weights_bytes(config) == sum(array.nbytes for array in arrays.values())


def test_on_accelerators_stacks_are_compiled_to_size_them_unless_all_runs_fit_beyond_doubt(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def compile_in_process(config: RunConfig, runs: int, *, streams: bool) -> StackCost:
        compiled.append(runs)
        evaluation = ProgramCost(
            name="evaluate",
            seconds=1.0,
            argument_bytes=10**6 + 10**5 * runs,
            output_bytes=0,
            temporary_bytes=10**5 * runs,
            flops=None,
            bytes_moved=None,
            step_cycles=None,
            not_priced={},
        )
        return StackCost([evaluation])

    monkeypatch.setattr("cnnexp.sweep.cost.compile_in_process", compile_in_process)
    monkeypatch.setattr("cnnexp.sweep.cost.jax.local_devices", lambda: [SimpleNamespace(platform="gpu")])
    monkeypatch.setattr("cnnexp.sweep.cost.jax.local_device_count", lambda: 1)
    monkeypatch.setattr("cnnexp.sweep.cost.device_memory", lambda: 10**12)
    assert largest_stack(configure(), 1000) == 1000 and not compiled
    assert bound_stack_bytes(configure(), 1000, "tpu") > bound_stack_bytes(configure(), 1000, "gpu")
    monkeypatch.setattr("cnnexp.sweep.cost.device_memory", lambda: 10**7)
    # 1 MB of images and 0.2 MB for each run in 80% of 10 MB: 35 runs; a hundred are three stacks of 34.
    assert largest_stack(configure(), 100) == 34 and compiled == [8, 16, 34]
    assert largest_stack(configure(sweep={"max_stack": 5}), 100) == 5
