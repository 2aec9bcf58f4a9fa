"""Values that would hang or end the process, or that mean nothing, are refused before anything is made."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from jax import random

from cnnexp.core.errors import UsageError
from cnnexp.data.sampling import batch_indices, draw_order
from cnnexp.models.spec import specify_network
from cnnexp.nn import geometry as geometry_module
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying, count_kernels, kernel_index
from cnnexp.sweep.grid import count_points
from cnnexp.sweep.validate import check_images, check_run
from cnnexp.training.schedule import resolve_duration
from tests.conftest import Configure, call_cnnexp
from tests.layer_cases import FEW, geometries

TASK = {"name": "k_patterns", "length": 50, "pattern": 3, "function": "parity"}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "train",
            {"steps": None, "epochs": 1e300},
            r"train\.epochs=1e\+300: .* 32 bits; allowed: at most 71,582,788",
        ),
        ("train", {"steps": None, "epochs": 1.7e308}, r"train\.epochs=1\.7e\+308: "),
        ("train", {"steps": 10**12}, r"train\.steps=1000000000000: .*at most 214,748,364 steps of 20 images"),
        (
            "train",
            {"steps": 10**8, "eval_every": 1.0},
            r"train\.eval_every=1\.0: 1e\+08 evaluations; .* at least 100,",
        ),
        ("train", {"tied_steps": 6}, r"train\.tied_steps=6: must be at most 5, the number of steps, or null"),
        (
            "train",
            {"share_every": 6},
            r"train\.share_every=6: must be at most 5, the number of steps, or null",
        ),
        (
            "data",
            {"batch_size": 121},
            r"data\.batch_size=121: must be at most 120, the number of training images",
        ),
        (
            "data",
            {"canvas": 1_000_000},
            r"data: 210 images of 1000000x1000000x1 need about 210TB .*this machine has",
        ),
        ("data", {"images": 10**12}, r"data: 1,000,000,000,090 images of 10x10x1 need about 100TB of memory"),
        (
            "model",
            {"kernel_size": 10**9},
            r"model\.kernel_size=1000000000x1000000000 is larger than the 10x10",
        ),
        (
            "model",
            {"tying": "tiled(1000000000)"},
            r"model\.tying=tiled\(1000000000\): .*up to tiled\(10\), or local",
        ),
        (
            "model",
            {"tying": "tiled(11)"},
            r"model\.tying=tiled\(11\): too much for the 10x10 positions of .*conv_0",
        ),
        (
            "model",
            {"tying": "blocked(11)"},
            r"model\.tying=blocked\(11\): .*allowed: up to blocked\(10\), or local",
        ),
        (
            "model",
            {"tying": "low_rank(101)"},
            r"model\.tying=low_rank\(101\): .*allowed: up to low_rank\(100\)",
        ),
        ("model", {"bias": "tiled(11)"}, r"model\.bias=tiled\(11\): too much for"),
        (
            "model",
            {"match": "macs", "match_tying": "blocked(11)"},
            r"model\.match_tying=blocked\(11\): too much",
        ),
    ],
)
def test_a_value_that_is_too_large_is_refused_in_one_line(
    configure: Configure, section: str, values: dict[str, Any], message: str
) -> None:
    def check() -> None:
        config = configure(**{section: values})
        check_images(config)
        check_run(config)

    with pytest.raises(UsageError, match=f"^{message}") as refused:
        check()
    assert "\n" not in str(refused.value)


def test_the_largest_allowed_values_are_accepted(configure: Configure) -> None:
    for section, values in (
        ("train", {"steps": 214_748_364, "eval_every": 215.0}),
        ("train", {"tied_steps": 5}),
        ("train", {"share_every": 5}),
        ("data", {"batch_size": 120}),  # more than the 60 that are trained on: see `batch_indices`
        ("model", {"tying": "tiled(10)"}),
        ("model", {"tying": "blocked(10)"}),
        ("model", {"tying": "low_rank(100)"}),
    ):
        check_run(configure(**{section: values}))
    signal = Geometry(in_shape=(10, 1, 1), features=1, kernel_size=(3, 1))
    assert (
        count_kernels(signal, Tying("tiled", 9)) == 9
    )  # the longer side counts: across there is one position
    small: dict[str, Any] = {"features": [2, 2], "tying": "tiled(3)", "padding": "VALID", "pool_size": [2, 1]}
    last = specify_network(configure(model=small, data={"canvas": 8}))[1].geometry
    assert last.positions == 1  # where all tyings are the same, so that any is taken


def test_an_evaluation_interval_below_one_step_evaluates_after_every_step(configure: Configure) -> None:
    assert resolve_duration(configure(train={"eval_every": 1e-300})).evaluate_after == (0, 1, 2, 3, 4, 5)


def test_the_order_of_images_repeats_after_the_largest_allowed_number_of_images() -> None:
    key, size = random.key(0), 2**16
    first, last, behind = (
        batch_indices(draw_order(key), jnp.int32(step), batch_size=size, train_size=jnp.int32(1000))
        for step in (0, 2**16 - 1, 2**16)
    )
    assert (np.asarray(first) == np.asarray(behind)).all() and not (
        np.asarray(first) == np.asarray(last)
    ).all()


@given(geometries())
@FEW
def test_unpadded_entries_and_kernels_are_counted_without_arrays(geometry: Geometry) -> None:
    inside = [int((geometry.axis_index(axis) < geometry.in_shape[axis]).sum()) for axis in (0, 1)]
    assert geometry.count_unpadded_entries() == inside[0] * inside[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry_module, "COUNT_BLOCK", 2)
        assert geometry.count_unpadded_entries() == inside[0] * inside[1]
    for tying in map(
        Tying.parse, ("shared", "tiled(2)", "tiled(9)", "blocked(3)", "blocked(9)", "local", "dense")
    ):
        assert count_kernels(geometry, tying) == kernel_index(geometry, tying).max() + 1


def test_the_counts_of_an_image_of_a_billion_pixels_need_no_array() -> None:
    geometry = Geometry(in_shape=(10**9, 1, 1), features=1, kernel_size=(3, 1))
    assert geometry.count_unpadded_entries() == 3 * 10**9 - 2
    assert count_kernels(geometry, Tying("local")) == 10**9


def test_the_number_of_jobs_is_that_of_hydra() -> None:
    parser = OverridesParser.create()
    for overrides, number in (
        (["seed=0"], 1),
        (["seed=0,1,2", "a=choice(x,y)"], 6),
        (["seed=range(5)", "b=range(1,10,3)", "a=1"], 15),
        (["seed=range(10,0,-3)", "b=range(0,1,0.25)"], 16),
        (["seed=range(100000000)"], 10**8),
    ):
        parsed = parser.parse_overrides(overrides)
        assert count_points(parsed) == number
        if number < 100:
            lists = [list(o.sweep_string_iterator()) for o in parsed if o.is_sweep_override()]
            assert number == np.prod([len(values) for values in lists], dtype=int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "run seed=range(100000000)",
            "seed=range(100000000): must be at most 200,000 runs in one sweep (got 100,000,000)",
        ),
        (
            "run model.features=[1000000000]",
            "model: one run needs about 92.3TB of memory, most of it for layer conv_0",
        ),
        (
            "plan model.features=[1000000000],[2]",
            "1 of 2 cells cannot be trained: features=[1000000000]: model: one run",
        ),
        (
            "plan model.kernel_size=3,99",
            "1 of 2 cells cannot be trained: kernel_size=99: model.kernel_size=99x99 is",
        ),
        ("run data.seed=4294967296", "data.seed=4294967296: must be less than 4294967296 (got"),
        (
            "run data.images=1000000000000",
            "data: 1,000,000,004,000 images of 16x16x1 need about 256TB of memory",
        ),
    ],
)
def test_a_command_that_asks_for_too_much_prints_one_line_and_writes_nothing(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("cnnexp.sweep.plan._matmul_rate", lambda: 1e9)
    assert call_cnnexp(*arguments.split(" ")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cnnexp: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
