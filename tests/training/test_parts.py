"""Gradients and logits are the same in parts as in one, and batches are divided where that is right."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.config import RunConfig
from cnnexp.core.platforms import compiling_for
from cnnexp.data.pipelines import InMemory
from cnnexp.models.network import list_tied_layers
from cnnexp.nn.ops import convolution
from cnnexp.training import parts as parts_module
from cnnexp.training import train as train_module
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.parts import (
    apply_in_parts,
    can_train_matrices,
    compute_gradients,
    count_parts,
    from_matrices,
    to_matrices,
)
from cnnexp.training.setup import Setup, State, make_setup
from cnnexp.training.train import init, train_steps
from tests.conftest import Configure, load_once

IMAGES = 48


def start(config: RunConfig) -> tuple[State, Hyperparameters, Setup]:
    setup, numbers = make_setup(config), Hyperparameters.from_config(config)
    return init(jax.random.key(0), numbers, setup), numbers, setup


@pytest.mark.parametrize(("tying", "largest"), [("shared", 2**15), ("tiled(2)", 2**15), ("shared", 0)])
def test_parts_of_a_batch_add_up_to_its_gradient(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tying: str, largest: int
) -> None:
    monkeypatch.setattr(convolution, "CPU_PATCH_NUMBERS", largest)
    state, numbers, setup = start(configure(model={"tying": tying, "features": [8, 8]}))
    shape = (IMAGES, *setup.network[0].geometry.in_shape)
    images, labels = jax.random.normal(jax.random.key(1), shape), jnp.arange(IMAGES) % 10
    monkeypatch.setattr(parts_module, "PATCH_BYTES", 1)
    assert count_parts(state, IMAGES, setup) == 1  # the weights are larger than the patches may be
    loss, whole, _ = compute_gradients(state, images, labels, numbers, setup)
    monkeypatch.setattr(parts_module, "count_parts", lambda *_: 3)
    loss_of_parts, parts, _ = compute_gradients(state, images, labels, numbers, setup)
    assert loss_of_parts == pytest.approx(float(loss), rel=1e-6)
    for one, sums in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(sums, one, atol=1e-5 * float(jnp.abs(one).max()))


@pytest.mark.parametrize(
    ("model", "platform", "parts"),
    [
        ({}, "cpu", 3),
        ({"tying": "low_rank(2)"}, "cpu", 3),
        ({"norm": "layer"}, "cpu", 3),
        ({}, "gpu", 1),
        ({"tying": "local"}, "cpu", 1),
        ({"tying": "dense"}, "cpu", 1),
        ({"norm": "batch"}, "cpu", 1),
        ({"dropout": 0.5}, "cpu", 1),
        ({"connectivity": "random"}, "cpu", 1),
        ({"lowering": "conv"}, "cpu", 1),
    ],
)
def test_batches_are_divided_where_every_layer_is_a_convolution_and_images_do_not_affect_each_other(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], platform: str, parts: int
) -> None:
    state, _, setup = start(configure(model={"features": [8], **model}))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    monkeypatch.setattr(parts_module, "PATCH_BYTES", max(weights, 10_000))
    with compiling_for(platform):
        assert count_parts(state, IMAGES, setup) == parts
        assert count_parts(state, 15, setup) == 1


def test_parts_of_a_batch_have_the_logits_of_the_batch(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _, setup = start(configure(model={"norm": "batch", "dropout": 0.5}))
    images = jax.random.normal(jax.random.key(1), (IMAGES, *setup.network[0].geometry.in_shape))
    whole = apply_in_parts(state, images, setup)
    monkeypatch.setattr(parts_module, "PATCH_BYTES", 10_000)
    assert count_parts(state, IMAGES, setup, evaluates=True) == 3
    np.testing.assert_allclose(apply_in_parts(state, images, setup), whole, atol=1e-6)


def test_a_network_with_a_convolution_of_xla_is_divided_too(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "CPU_PATCH_NUMBERS", 0)
    monkeypatch.setattr(parts_module, "PATCH_BYTES", 50_000)
    state, _, setup = start(configure(model={"features": [8, 8], "pool": "max"}))
    network = nnx.merge(setup.graph, state.params, state.variables)
    assert [layer.layout for layer in list_tied_layers(network).values()] == ["CHWN", "NHWC", None]
    assert count_parts(state, IMAGES, setup) == 3


def test_a_batch_whose_patches_fit_in_a_cache_is_not_divided(configure: Configure) -> None:
    state, _, setup = start(configure())
    assert count_parts(state, IMAGES, setup) == 1


def test_a_bank_is_the_same_after_it_was_a_matrix(configure: Configure) -> None:
    state, _, setup = start(configure(model={"tying": "dense", "features": [4, 4]}))
    matrices = to_matrices(state, setup)
    banks = [leaf for leaf in jax.tree.leaves(matrices) if leaf.ndim == 5]
    assert len(banks) == 3  # the weights of the head, and their two moments
    again = from_matrices(matrices, setup)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True))
    with compiling_for("gpu"):
        assert jax.tree.leaves(to_matrices(state.params, setup))[0].ndim == 5


@pytest.mark.parametrize("optim", [{"clip": 0.5}, {"name": "sgd", "momentum": 0.9}])
def test_training_with_matrices_has_the_results_of_training_with_banks(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any]
) -> None:
    config = configure(model={"tying": "dense", "features": [4]}, optim={"weight_decay": 0.1, **optim})
    state, numbers, setup = start(config)
    images = jax.tree.map(jnp.asarray, load_once(config.data))
    order = jnp.arange(len(images.train_images))
    source = InMemory(images, order, jnp.int32(64), order[:0])
    train = partial(train_steps, state, source, numbers, steps=5)
    assert can_train_matrices(setup)
    trained = train(setup)
    monkeypatch.setattr(train_module, "can_train_matrices", lambda _: False)
    expected = train(setup)
    assert jax.tree.structure(trained) == jax.tree.structure(expected)
    for leaf, value in zip(jax.tree.leaves(trained.params), jax.tree.leaves(expected.params), strict=True):
        assert leaf.shape == value.shape
        np.testing.assert_allclose(leaf, value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"train": {"share_every": 3}},
        {"train": {"tied_steps": 3}},
        {"optim": {"l1": 1e-3, "l1_threshold": 1.0}},
        {"optim": {"name": "adafactor"}},
    ],
)
def test_banks_are_kept_where_more_than_a_layer_depends_on_their_shape(
    configure: Configure, keys: dict[str, Any]
) -> None:
    assert can_train_matrices(make_setup(configure(model={"tying": "dense"})))
    assert not can_train_matrices(make_setup(configure(model={"tying": "dense"}, **keys)))
