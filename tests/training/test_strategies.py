"""The runs of a stack end with the same numbers, computed in turn, in chunks or all at once."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from cnnexp.core.platforms import batched_runs, compiling_for
from cnnexp.training import programs, stacking
from cnnexp.training.loop import StackTrainer
from cnnexp.training.programs import list_programs
from cnnexp.training.strategies import choose_strategy, map_in_chunks, update_runs
from tests.clusters import compute_largest_difference, start_run, wait_for_exit
from tests.conftest import Configure, load_once


def train(configure: Configure, stacking: str | int, tying: str) -> dict[str, np.ndarray]:
    """Train a stack of five runs, and return the final weights and losses."""
    configs = [
        configure(sweep={"stacking": stacking}, model={"tying": tying}, seed=seed) for seed in range(5)
    ]
    end = list(StackTrainer(configs[0], load_once(configs[0].data)).train(configs))[-1]
    weights = {
        f"{run}/{name}": a for run, of_run in enumerate(end.copy_weights()) for name, a in of_run.items()
    }
    return weights | {"loss": np.array([row["test/loss"] for row in end.rows or []])}


@pytest.mark.parametrize("tying", ["shared", "local"])
@pytest.mark.slow
def test_all_strategies_give_the_same_numbers(configure: Configure, tying: str) -> None:
    in_turn = train(configure, "map", tying)
    assert len(set(in_turn["loss"])) == 5
    for other in ("auto", "vmap", 2):
        result = train(configure, other, tying)
        exact = other == "auto"  # on CPU, the same program
        assert result.keys() == in_turn.keys()
        for name, expected in in_turn.items():
            np.testing.assert_allclose(result[name], expected, rtol=0, atol=0 if exact else 2e-5)


@pytest.mark.slow
def test_each_of_several_devices_computes_its_runs_in_chunks(tmp_path: Path) -> None:
    sweep = ["data.images=200", "data.test_images=50", "data.train_size=64", "model.features=[2]"]
    sweep += ["name=sweep", "seed=range(5)", "train.steps=5"]
    in_chunks, in_turn = tmp_path / "chunks", tmp_path / "turn"
    two_devices = {"JAX_NUM_CPU_DEVICES": "2"}
    started = start_run(in_chunks, *sweep, "sweep.stacking=2", environment=two_devices)
    wait_for_exit(started, in_chunks)
    wait_for_exit(start_run(in_turn, *sweep), in_turn)
    assert 0 < compute_largest_difference(in_chunks, in_turn) <= 1e-5


@pytest.mark.parametrize(
    ("runs", "at_once", "sizes"),
    [(6, 1, {1}), (6, 6, {6}), (6, 99, {6}), (6, 3, {3}), (6, 4, {3}), (7, 3, {3}), (1, 4, {1})],
)
def test_chunks_are_of_nearly_equal_sizes(runs: int, at_once: int, sizes: set[int]) -> None:
    traced = set()

    def square(x: jax.Array) -> jax.Array:
        traced.add(batched_runs())
        return x**2

    values = jnp.arange(float(runs))
    assert (map_in_chunks(square, runs, at_once)(values) == values**2).all()
    assert traced == sizes and batched_runs() == 1


def test_runs_that_are_updated_in_place_have_the_results_of_a_map(configure: Configure) -> None:
    def move(state: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {"x": 2 * state["x"] + jax.random.normal(key, state["x"].shape), "n": state["n"] + 1}

    runs = 3
    keys = jax.random.split(jax.random.key(0), runs)
    states = {"x": jnp.arange(6.0).reshape(runs, 2), "n": jnp.arange(runs)}
    expected = jax.vmap(move)(states, keys)
    for way, platform in (("map", "cpu"), ("vmap", "cpu"), ("map", "gpu")):
        with compiling_for(platform):
            update = update_runs(move, configure(sweep={"stacking": way}), runs, (keys,))
            updated = jax.jit(update)(states)
        assert all((updated[name] == expected[name]).all() for name in expected)


def test_the_choice_follows_the_platform_and_the_key(configure: Configure) -> None:
    small, large = configure(), configure(model={"features": [512], "tying": "local"})
    platforms = ("cpu", "gpu", "tpu")
    assert [choose_strategy(small, 64, platform).name for platform in platforms] == ["map", "vmap", "8"]
    assert [choose_strategy(large, 64, platform).name for platform in platforms] == ["map", "vmap", "map"]
    assert choose_strategy(configure(), 1, "gpu").at_once == 1
    for platform in platforms:
        for value, at_once in {16: 8, 3: 3, "map": 1, "vmap": 8}.items():
            strategy = choose_strategy(configure(sweep={"stacking": value}), 8, platform)
            assert (strategy.at_once, strategy.reason) == (at_once, "as configured")


def lower_training(configure: Configure, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """Lower the training of a stack of four runs for a GPU."""
    for module in (programs, stacking):
        monkeypatch.setattr(module, "mesh_platform", lambda _: "gpu")
    listed = list_programs(configure(**changes), 4, jax.devices()[:1])
    program = next(program for program in listed if program.name == "train")
    return export.export(program.function, platforms=["cuda"])(*program.arguments).mlir_module()


def largest_group(text: str) -> int:
    groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", text)
    return max(map(int, groups), default=0)


def test_stacks_on_gpus_have_no_grouped_convolution(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert largest_group(lower_training(configure, monkeypatch)) == 0
    forced = lower_training(configure, monkeypatch, model={"lowering": "conv"})
    assert largest_group(forced) == 4  # that `largest_group` would find one
    wide = {"features": [32, 32], "precision": "default"}
    in_turn = lower_training(configure, monkeypatch, sweep={"stacking": "map"}, model=wide)
    assert largest_group(in_turn) == 1
