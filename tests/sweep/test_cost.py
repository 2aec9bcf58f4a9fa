"""The limit of the weights that a sweep stores."""

from collections.abc import Mapping

import jax
import pytest

from cnnexp.config import RunConfig
from cnnexp.sweep.cost import GIGABYTE, choose_kept, limit_weights, weights_bytes
from cnnexp.sweep.points import SweepPoint
from cnnexp.training.optimizers import Hyperparameters
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
