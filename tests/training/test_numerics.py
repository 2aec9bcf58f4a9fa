"""What decides a result is set by the program, and weights of every type train."""

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

OTHER = {  # for each flag another value that JAX takes
    "jax_default_prng_impl": "rbg",
    "jax_legacy_prng_key": "warn",
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_transfer_guard": "log",
}


def test_flags_that_decide_a_result_are_set_whatever_they_were() -> None:
    before = {flag: jax.config.values[flag] for flag in NUMERICS}
    try:
        for flag, value in NUMERICS.items():
            jax.config.update(flag, OTHER.get(flag, not value))
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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_fewer_bits_train_and_keep_their_type(
    configure: Configure, images: Images, dtype: str, optimizer: str
) -> None:
    config = configure(
        model={"param_dtype": dtype},
        optim={"name": optimizer, "learning_rate": 0.05 if optimizer == "sgd" else 0.02},
        train={"steps": 30, "eval_every": 30.0},
    )
    trainer = StackTrainer(config, images)
    moments = list(trainer.train([config]))
    first, last = (moment.rows for moment in (moments[0], moments[-1]))
    assert first and last and last[0]["train/loss"] < 0.9 * first[0]["train/loss"]
    types = {leaf.dtype for leaf in jax.tree.leaves(moments[-1].padded_state.params)}
    assert types == {jnp.dtype(dtype)}


@pytest.mark.slow
def test_a_sweep_with_weights_of_fewer_bits_ends_in_a_report(run: Any) -> None:
    assert run("model.param_dtype=bfloat16", "model.tying=shared,local") == 0
    from cnnexp.report.output import write_report

    assert "kernels" in write_report(Path("results/default")).figures


def test_precision_of_products_is_named_as_devices_compute_it() -> None:
    cases = [
        (("float32", "float32", "tpu"), "float32"),
        (("default", "float32", "cpu"), "float32"),
        (("default", "float32", "gpu"), "tensorfloat32"),
        (("default", "float32", "tpu"), "bfloat16"),
        (("high", "float32", "tpu"), "bfloat16_3x"),
        (("float32", "bfloat16", "gpu"), "bfloat16"),
    ]
    assert [product_precision(*case) for case, _ in cases] == [named for _, named in cases]


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


def test_a_part_of_a_batch_is_augmented_as_the_whole_batch(configure: Configure) -> None:
    data = configure(data={"crop": 3, "flip": True}).data
    pixels = np.asarray(load_images(data).train_images[:8])
    same = Normalisation(np.zeros(1, np.float32), np.ones(1, np.float32))
    corruptions = Corruptions(data, random.key(0), CorruptionStrengths.from_config(data), same)
    image_ids, step = np.arange(8, dtype=np.int32), jnp.int32(5)

    def seen(part: slice) -> np.ndarray:
        return np.asarray(
            corruptions.images(pixels[part], image_ids[part], split="train", step=step, first=part.start)
        )

    whole = seen(slice(0, 8))
    assert (seen(slice(4, 8)) == whole[4:]).all() and (seen(slice(0, 4)) == whole[:4]).all()
    assert (whole != pixels).any()
