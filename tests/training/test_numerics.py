"""Results do not depend on the environment, and weights of every type train."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax import random

from cnnexp.analysis.dataframe import find_mixed_cells
from cnnexp.data.corruptions import Corruptions, CorruptionStrengths
from cnnexp.data.images import Images, Normalisation
from cnnexp.data.loading import load_images
from cnnexp.sweep.devices import NUMERICS, pin_numerics
from cnnexp.sweep.provenance import product_precision
from cnnexp.training.loop import StackTrainer
from tests.clusters import compute_largest_difference, start_run, wait_for_exit
from tests.conftest import SMALL_SWEEP, Configure

OTHER_VALUES = {  # for each flag another value that JAX accepts
    "jax_default_prng_impl": "rbg",
    "jax_legacy_prng_key": "warn",
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_transfer_guard": "log",
}


def test_flags_that_decide_a_result_are_set() -> None:
    before = {flag: jax.config.values[flag] for flag in NUMERICS}
    try:
        for flag, value in NUMERICS.items():
            jax.config.update(flag, OTHER_VALUES.get(flag, not value))
        pin_numerics()
        assert {flag: jax.config.values[flag] for flag in NUMERICS} == NUMERICS
    finally:
        for flag, value in before.items():
            jax.config.update(flag, value)


ENVIRONMENTS = [
    {"JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0", "JAX_RANDOM_SEED_OFFSET": "3"},
    {"JAX_ENABLE_X64": "1", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
    {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "JAX_DEBUG_NANS": "1", "JAX_DEFAULT_DTYPE_BITS": "32"},
]


@pytest.mark.slow
def test_no_environment_changes_a_result(tmp_path: Path) -> None:
    sweep = [*SMALL_SWEEP, "name=sweep", "data.pixel_noise=0.1", "data.crop=1"]
    plain = tmp_path / "plain"
    wait_for_exit(start_run(plain, *sweep), plain)
    for number, environment in enumerate(ENVIRONMENTS):
        other = tmp_path / str(number)
        wait_for_exit(start_run(other, *sweep, environment=environment), other)
        assert compute_largest_difference(plain, other) == 0


@pytest.mark.parametrize(("dtype", "optimizer"), [("bfloat16", "sgd"), ("float16", "adamw")])
def test_weights_of_sixteen_bits_train_and_keep_their_type(
    configure: Configure, images: Images, dtype: str, optimizer: str
) -> None:
    config = configure(
        model={"param_dtype": dtype},
        optim={"name": optimizer, "learning_rate": 0.05 if optimizer == "sgd" else 0.02},
        train={"steps": 30, "eval_every": 30.0},
    )
    trainer = StackTrainer(config, images)
    pauses = list(trainer.train([config]))
    first, last = pauses[0].rows, pauses[-1].rows
    assert first and last and last[0]["train/loss"] < 0.9 * first[0]["train/loss"]
    types = {leaf.dtype for leaf in jax.tree.leaves(pauses[-1].padded_state.params)}
    assert types == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_a_sweep_with_weights_of_sixteen_bits_ends_in_a_report(run: Any) -> None:
    assert run("model.param_dtype=bfloat16", "model.tying=shared,local") == 0
    from cnnexp.report.output import write_report

    assert "kernels" in write_report(Path("results/default")).figures


def test_precision_of_products_is_that_of_the_device() -> None:
    cases = [
        (("float32", "float32", "tpu"), "float32"),
        (("default", "float32", "cpu"), "float32"),
        (("default", "float32", "gpu"), "tensorfloat32"),
        (("default", "float32", "tpu"), "bfloat16"),
        (("high", "float32", "tpu"), "bfloat16_3x"),
        (("float32", "bfloat16", "gpu"), "bfloat16"),
    ]
    assert [product_precision(*case) for case, _ in cases] == [precision for _, precision in cases]


def test_cells_that_mix_kinds_of_devices_are_named() -> None:
    table = pd.DataFrame(
        {
            "model.tying": ["shared", "shared", "local", "local"],
            "device_kind": ["cpu (A)", "gpu (B)", "cpu (A)", "cpu (A)"],
            "product_precision": ["float32", "float32", "float32", "bfloat16"],
        }
    )
    assert find_mixed_cells(table) == [
        "model.tying=local: precision of products bfloat16 and float32",
        "model.tying=shared: device cpu (A) and gpu (B)",
    ]
    assert find_mixed_cells(table[2:3]) == []


def test_parts_of_a_batch_are_augmented_as_in_the_whole_batch(configure: Configure) -> None:
    data = configure(data={"crop": 3, "flip": True}).data
    pixels = np.asarray(load_images(data).train_images[:8])
    same = Normalisation(np.zeros(1, np.float32), np.ones(1, np.float32))
    corruptions = Corruptions(data, random.key(0), CorruptionStrengths.from_config(data), same)
    image_ids, step = np.arange(8, dtype=np.int32), jnp.int32(5)

    @jax.jit
    def augment(pixels: jax.Array, image_ids: jax.Array, first: int) -> jax.Array:
        return corruptions.images(pixels, image_ids, split="train", step=step, first=first)

    whole = np.asarray(augment(pixels, image_ids, 0))
    assert (augment(pixels[4:], image_ids[4:], 4) == whole[4:]).all()
    assert (augment(pixels[:4], image_ids[:4], 0) == whole[:4]).all()
    assert (whole != pixels).any()
