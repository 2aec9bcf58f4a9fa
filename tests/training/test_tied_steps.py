"""Networks that are kept convolutions, or averaged to one, while they train; measures of their kernels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.models.network import TiedNetwork, measure_kernels, shrink
from cnnexp.models.spec import specify_network, total_count
from cnnexp.nn.embedding import average_kernels, distance_to_shared
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.probes import locality
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import count_layer
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training.loop import StackTrainer
from cnnexp.training.optimizers import beta_lasso
from tests.conftest import Configure, load_once
from tests.layer_cases import build_filled_layer, build_layer
from tests.training.test_train import final_losses, train_stack


def measure_at_evaluations(configs: list[RunConfig], measure: str) -> list[np.ndarray]:
    """A measure of the first layer of each run, at every evaluation."""
    trainer = StackTrainer(configs[0], load_once(configs[0].data))
    return [
        np.array([values[f"learned/{measure}/conv_0"] for _, values in trainer.inspect_kernels(state)])
        for state in trainer.train(configs)
        if state.rows is not None
    ]


@pytest.mark.parametrize(
    ("tying", "optim"),
    [
        ("blocked(2)", {"name": "sgd", "weight_decay": 0.1}),
        ("dense", {"name": "adamw"}),
    ],
)
@pytest.mark.slow
def test_a_tied_network_trains_as_the_convolution(configure: Configure, tying: str, optim: dict) -> None:
    model = {"tying": tying, "features": [3, 4], "kernel_size": [3, 2], "bias": "same"}
    tied = configure(model=model, optim=optim, train={"tied_steps": 5})
    convolution = configure(model=model | {"tying": "shared"}, optim=optim)
    assert final_losses([tied]) == pytest.approx(final_losses([convolution]), abs=1e-5)


@pytest.mark.parametrize("tying", ["local", "dense"])
def test_a_network_stays_a_convolution_for_its_tied_steps(configure: Configure, tying: str) -> None:
    runs = [configure(model={"tying": tying}, train={"tied_steps": steps}) for steps in (0, 2, 4, 5)]
    assert len({make_program_key(run) for run in runs}) == 1  # they have one program
    start, *_, distances = measure_at_evaluations(runs, "distance")
    np.testing.assert_allclose(start, 0, atol=1e-6)
    assert distances[0] > distances[1] > distances[2] > 1e-4 and distances[3] < 1e-6
    assert make_program_key(configure(model={"tying": tying})) != make_program_key(runs[0])


def test_kernels_are_averaged_at_the_configured_interval(configure: Configure) -> None:
    runs = [configure(model={"tying": "local"}, train={"share_every": steps}) for steps in (1, 2, 5, 6)]
    *_, distances = measure_at_evaluations(runs, "distance")
    assert distances[0] < 1e-6 and distances[2] < 1e-6  # after step 5
    assert 1e-3 < distances[1] < distances[3]


def test_tied_steps_of_a_layer_that_mixes_kernels_are_refused(configure: Configure) -> None:
    config = configure(model={"tying": "low_rank(2)"}, train={"tied_steps": 3})
    with pytest.raises(
        UsageError, match=r"train.tied_steps=3: low_rank\(2\) has no kernel for each position"
    ):
        specify_network(config)


@pytest.mark.parametrize(
    ("tying", "padding"), [("tiled(2)", "SAME"), ("local", "VALID"), ("dense", "SAME"), ("dense", "VALID")]
)
def test_averaged_kernels_are_the_nearest_convolution(tying: str, padding: Any) -> None:
    geometry = Geometry(in_shape=(5, 5, 2), features=3, kernel_size=(3, 3), padding=padding)
    layer = build_filled_layer(geometry, tying)
    graph, state = nnx.split(layer)

    @jax.jit
    def average(state: nnx.State) -> tuple[nnx.State, jax.Array, jax.Array]:
        averaged = nnx.merge(graph, state)
        average_kernels(averaged)
        is_local = locality(averaged, (3, 3)) if tying == "dense" else jnp.float32(1)
        return nnx.state(averaged), distance_to_shared(averaged), is_local

    once, distance, is_local = average(state)
    twice, _, _ = average(once)
    before, nearest = np.asarray(layer.bank[...]), np.asarray(once["bank"][...])
    np.testing.assert_allclose(twice["bank"][...], nearest, atol=1e-6)
    assert float(distance) < 1e-6
    for scale in (0.9, 1.1):  # other convolutions are further away
        assert np.square(nearest * scale - before).sum() > np.square(nearest - before).sum()
    assert float(is_local) == pytest.approx(1, abs=1e-5)


def test_kernels_of_a_network_are_measured_by_layer(configure: Configure) -> None:
    network = specify_network(configure(model={"tying": "dense", "features": [2]}))

    @jax.jit
    def measure() -> dict[str, jax.Array]:
        net = TiedNetwork(network, rngs=nnx.Rngs(0))
        layer = net.conv_0
        assert isinstance(layer, TiedConv)
        kernels = layer.bank[...]
        layer.bank[...] = kernels.at[: len(kernels) // 2].set(0)
        return measure_kernels(net)

    measured = measure()
    names = ("distance", "zeros", "locality", "inverse_participation", "surviving_neighbours")
    assert set(measured) == {f"learned/{name}/conv_0" for name in names}
    assert float(measured["learned/zeros/conv_0"]) == pytest.approx(0.5, abs=0.01)
    assert 0.9 < float(measured["learned/distance/conv_0"]) < 1
    shared = nnx.eval_shape(lambda: TiedNetwork(specify_network(configure()), rngs=nnx.Rngs(0)))
    assert measure_kernels(shared) == {}


def test_beta_lasso_takes_the_step_worked_out_by_hand() -> None:
    kernels = jnp.array([0.5, -0.5, 0.011, -0.02, 0.0, 0.0]).reshape(6, 1, 1, 1, 1)
    steps = jnp.array([0.1, 0.1, 0.0, 0.02, 0.03, 0.001]).reshape(kernels.shape)
    params, updates = {"bank": kernels, "bias": jnp.ones((1, 2))}, {"bank": steps, "bias": jnp.ones((1, 2))}
    lasso = beta_lasso(lambda step: 0.5, jnp.float32(0.004), jnp.float32(5.0))
    changed, _ = lasso.update(updates, lasso.init(params), params)
    after = optax.apply_updates(params, changed)
    # Less 0.5 * 0.004 towards zero, then 0 below 5 * 0.004.
    expected = [0.598, -0.398, 0.0, 0.0, 0.03, 0.0]
    np.testing.assert_allclose(after["bank"].ravel(), expected, atol=1e-6)  # pyright: ignore
    np.testing.assert_allclose(after["bias"], 2)  # pyright: ignore


def test_larger_l1_penalties_leave_more_zero_weights(configure: Configure) -> None:
    runs = [
        configure(model={"tying": "dense"}, optim={"l1": l1, "l1_threshold": 5.0})
        for l1 in (1e-4, 1e-3, 1e-2)
    ]
    *_, zeros = measure_at_evaluations(runs, "zeros")
    assert 0 <= zeros[0] < zeros[1] < zeros[2]


def test_shrink_is_the_difference_of_two_rectifiers_and_its_threshold_is_trained(
    configure: Configure,
) -> None:
    x = jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(shrink(x, jnp.float32(1.0)), [-2, 0, 0, 0, 1])
    config = configure(model={"activation": "shrink", "threshold": 0.1})
    layers = specify_network(config)
    first = layers[0]
    assert first.counts.params == count_layer(first.geometry, first.tying, first.bias).params + 1
    *_, end = train_stack([config])
    assert sum(leaf.size for leaf in jax.tree.leaves(end.state.params)) == total_count(layers, "params")
    assert float(end.state.params["conv_0_threshold"][...][0]) != pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"activation": "shrink"}}, "model.activation=shrink model.threshold=null"),
        ({"model": {"threshold": 0.1}}, "model.activation=relu model.threshold=0.1"),
        ({"optim": {"l1_threshold": 5.0}}, "optim.l1_threshold=5.0: is a multiple of optim.l1"),
        ({"train": {"share_every": 0}}, "train.share_every=0"),
    ],
)
def test_keys_that_need_another_key_or_a_larger_value_are_refused(
    configure: Configure, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        configure(**changes)


def test_keys_added_later_do_not_change_ids_of_older_runs(configure: Configure) -> None:
    assert "tied_steps" not in configure().identity()["train"]
    assert configure(train={"tied_steps": 0}).run_id != configure().run_id


def test_averaging_a_layer_that_mixes_kernels_is_refused() -> None:
    geometry = Geometry(in_shape=(5, 5, 1), features=1, kernel_size=(3, 3))
    with pytest.raises(ValueError, match="mixes its kernels"):
        average_kernels(build_layer(geometry, "low_rank(2)"))
