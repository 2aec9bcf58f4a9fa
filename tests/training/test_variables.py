"""Variables that the optimiser does not train: running averages and the keys of dropout."""

from pathlib import Path

import jax
import numpy as np
import pytest

from cnnexp.training.loop import StackTrainer
from cnnexp.training.setup import merge_network
from tests.clusters import compute_largest_difference, start_run, wait_for_exit
from tests.conftest import SMALL_SWEEP, Configure, load_once
from tests.training.test_train import stack_rows

# Without biases: before a batch normalisation their gradient is rounding error, which Adam would enlarge.
NORMALISED = {"norm": "batch", "dropout": 0.25, "features": [3], "tying": "tiled(2)", "bias": "none"}


@pytest.mark.slow
def test_a_stack_and_a_resumed_run_give_what_a_run_alone_gives(configure: Configure) -> None:
    configs = [configure(model=NORMALISED, seed=seed) for seed in (0, 1)]
    whole = stack_rows(configs)
    for number, config in enumerate(configs):
        alone = [rows[0] for rows in stack_rows([config])]
        assert [row["test/loss"] for row in alone] == pytest.approx(
            [rows[number]["test/loss"] for rows in whole], abs=1e-5
        )
    trainer = StackTrainer(configs[0], jax.device_put(load_once(configs[0].data)), 2)
    loop = trainer.train(configs)
    next(loop)
    saved = jax.tree.map(lambda leaf: leaf.copy(), next(loop).state)
    resumed = [at.rows for at in trainer.train(configs, saved) if at.rows is not None]
    assert resumed[-1] == whole[-1]


@pytest.mark.slow
def test_evaluation_uses_running_averages_and_drops_nothing(configure: Configure) -> None:
    config = configure(model=NORMALISED)
    trainer = StackTrainer(config, jax.device_put(load_once(config.data)))
    *_, last = trainer.train([config])
    state = jax.tree.map(lambda leaf: leaf[0], last.state)
    network = merge_network(state.params, state.variables, trainer.setup)
    assert not np.allclose(network.conv_0_norm.mean[...], 0)
    images = jax.random.normal(jax.random.key(0), (6, 10, 10, 1))
    together, first = network(images), network(images[:1])
    np.testing.assert_allclose(first, together[:1], atol=1e-5)
    np.testing.assert_array_equal(together, network(images))


def test_dropout_is_drawn_anew_at_each_step_and_for_each_seed(configure: Configure) -> None:
    plain, dropped = (
        stack_rows([configure(model={"features": [3], "dropout": p}, seed=s) for s in (0, 1)])
        for p in (0.0, 0.5)
    )
    assert plain[0] == dropped[0]  # before training, nothing differs
    assert plain[-1] != dropped[-1]


@pytest.mark.slow
def test_devices_that_split_batches_normalise_over_the_whole_batch(tmp_path: Path) -> None:
    sweep = [
        *SMALL_SWEEP,
        "name=sweep",
        "model.norm=batch,group",
        "model.norm_groups=2",
        "model.tying=blocked(2)",
        "model.bias=none",
    ]
    one, four = tmp_path / "one", tmp_path / "four"
    wait_for_exit(start_run(one, *sweep), one)
    devices = {"JAX_NUM_CPU_DEVICES": "4"}
    wait_for_exit(start_run(four, *sweep, "train.parallel=data", environment=devices), four)
    assert compute_largest_difference(one, four) <= 1e-4
