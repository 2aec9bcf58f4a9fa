"""Networks are built as they are specified, and specifications are those of the configuration."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hydra import compose, initialize_config_dir

from cnnexp.config import SimpleCNN, parse
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import packaged_folder
from cnnexp.core.platforms import compiling_for
from cnnexp.data.images import DataShape
from cnnexp.models.network import TiedNetwork, get_layer, sample_kernels
from cnnexp.models.spec import match_target, specify_layers, specify_network, total_count
from cnnexp.sweep.points import to_dict
from tests.conftest import Configure


@pytest.mark.parametrize(
    "model",
    [
        {"features": [3, 5], "kernel_size": [3, 2], "tying": ["local", "shared"], "hidden": [7]},
        {"features": 4, "kernel_size": [[3, 1], 2], "stride": 2, "padding": "VALID", "pool": "none"},
        {"features": [2, 2], "tying": "dense", "bias": ["local", "none"], "pool": "average"},
        {"features": [2, 3], "tying": ["tiled(2)", "low_rank(2)"], "bias": "same", "dilation": 2},
        {"features": [2, 3], "pool": ["blur", "max_blur"], "pool_size": [2, 3], "blur_size": [5, 2]},
        {"features": 2, "connectivity": "random", "padding": "CIRCULAR", "pool": "global_average"},
    ],
)
def test_counts_of_the_specification_are_those_of_the_network(
    configure: Configure, model: dict[str, Any]
) -> None:
    layers = specify_network(configure(model=model))
    net = nnx.eval_shape(lambda: TiedNetwork(layers, rngs=nnx.Rngs(0)))
    params = nnx.state(net, nnx.Param)
    for layer in layers:
        leaves = jax.tree.leaves(params[layer.name])
        assert sum(leaf.size for leaf in leaves) == layer.counts.params
    logits = nnx.eval_shape(lambda net, images: net(images), net, jnp.ones((2, 10, 10, 1)))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_accelerators_add_shared_biases_after_max_pooling_with_the_same_result(
    configure: Configure, activation: str
) -> None:
    layers = specify_network(
        configure(model={"pool": "max", "pool_size": 2, "activation": activation, "lowering": "matmul"})
    )
    net = TiedNetwork(layers, rngs=nnx.Rngs(0))
    layer = get_layer(net, layers[0])
    layer.bias = nnx.Param(jnp.linspace(-0.5, 0.5, layers[0].geometry.features)[None])
    images = jax.random.normal(jax.random.key(1), (20, 10, 10, 1))

    def compute(platform: str) -> tuple[jax.Array, nnx.State, bool]:
        def loss(net: TiedNetwork) -> jax.Array:
            return (net(images) ** 2).sum()

        with compiling_for(platform):
            text = str(jax.make_jaxpr(lambda images: net(images))(images))
            return net(images), nnx.grad(loss)(net), bool(re.search(r":f32\[\d+,10,10,20\] = add", text))

    on_cpu, on_tpu = compute("cpu"), compute("tpu")
    assert (on_cpu[0] == on_tpu[0]).all()
    for first, second in zip(jax.tree.leaves(on_cpu[1]), jax.tree.leaves(on_tpu[1]), strict=True):
        assert jnp.allclose(first, second, rtol=1e-4, atol=1e-5)
    assert on_cpu[2] and on_tpu[2] == (activation != "relu")  # whether biases are added to all pixels


def test_layers_of_an_mlp_have_names_and_counts(configure: Configure) -> None:
    values = configure().model_dump() | {
        "model": {
            "name": "mlp",
            "hidden": [8, 6],
            "activation": "relu",
            "head": "softmax",
            "dtype": None,
            "param_dtype": "float32",
            "precision": "float32",
        }
    }
    layers = specify_network(parse(values))
    assert [layer.name for layer in layers] == ["dense_0", "dense_1", "head"]
    assert [layer.counts.params for layer in layers] == [100 * 8 + 8, 8 * 6 + 6, 6 * 10 + 10]


def test_kernels_are_sampled_of_convolutions_and_of_a_first_layer_that_sees_the_whole_image(
    configure: Configure,
) -> None:
    whole = {"features": [8, 4], "kernel_size": [10, 1], "padding": "VALID", "pool": "none"}
    networks = [TiedNetwork(specify_network(configure(model=m)), rngs=nnx.Rngs(0)) for m in (whole, {})]
    dense, usual = map(sample_kernels, networks)
    assert {name: kernels.shape for name, kernels in dense.items()} == {"conv_0": (1, 1, 10, 10, 8)}
    expected = get_layer(networks[0], networks[0].layers[0]).bank[0, :, :, 0, 2]
    assert (dense["conv_0"][0, 0, :, :, 2] == expected).all()
    assert "head" not in usual and "conv_0" in usual


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kernel_size": 11}, "larger than the 10x10 image"),
        ({"features": [2, 2], "kernel_size": 1, "pool_size": [3, 4]}, "leaves nothing"),
        ({"features": [2, 2], "stride": [1, 2, 3]}, "3 values for 2 layers"),
    ],
)
def test_impossible_geometries_are_refused(configure: Configure, model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        specify_network(configure(model=model))


def test_several_labels_per_image_need_the_sigmoid_head(configure: Configure) -> None:
    shape = DataShape(image=(10, 10, 1), classes=10, train_images=5, test_images=5, multi_label=True)
    assert specify_layers(configure(model={"head": "sigmoid"}).model, shape)
    with pytest.raises(UsageError, match=r"model\.head=softmax"):
        specify_layers(configure().model, shape)


CIFAR = DataShape(image=(32, 32, 3), classes=10, train_images=50_000, test_images=10_000)


def compose_model(name: str, **changes: Any) -> SimpleCNN:
    """A model of conf/model, composed as Hydra does."""
    with initialize_config_dir(str(packaged_folder("conf")), version_base="1.3"):
        values = to_dict(compose("config", [f"model={name}"]))
    values["model"] |= changes
    model = parse(values).model
    assert isinstance(model, SimpleCNN)
    return model


@pytest.mark.parametrize(
    ("name", "changes", "params", "normalised"),
    [
        ("elsayed2020", {}, 76_106, 76_490),
        ("elsayed2020", {"tying": "low_rank(4)"}, 303_146, 303_530),
        ("elsayed2020", {"tying": "local", "bias": "local", "norm_tying": "shared"}, 55_528_330, 55_528_714),
        ("neyshabur2020", {}, 138_316_210, 138_323_710),
        ("neyshabur2020", {"tying": "local", "norm_tying": "shared"}, 147_610_960, 147_618_460),
        ("neyshabur2020", {"tying": "dense"}, 256_244_560, 256_328_560),
        ("d_conv", {}, 26_190_346, 26_204_298),
        ("d_conv", {"tying": "local", "norm_tying": "shared"}, 207_338_314, 207_352_266),
        ("ott2020", {}, 17_293_450, 17_296_394),
        ("ott2020", {"tying": "local"}, 49_999_306, 50_083_274),
    ],
)
def test_networks_of_papers_have_the_published_number_of_parameters(
    name: str, changes: dict[str, Any], params: int, normalised: int
) -> None:
    """Elsayed 2020: 76,106 and 55.5M; Neyshabur 2020 at s 32, alpha 150: 138.3M, 147.6M, 256.2M.

    The published numbers are without the scales and biases of batch normalisation.
    """
    for norm, count in (("none", params), ("batch", normalised)):
        layers = specify_layers(compose_model(name, norm=norm, **changes), CIFAR)
        assert total_count(layers, "params") == count
        net = nnx.eval_shape(lambda layers=layers: TiedNetwork(layers, rngs=nnx.Rngs(0)))  # allocates nothing
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == count
        statistics = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.BatchStat)))
        assert statistics == (0 if norm == "none" else normalised - params)  # as many as scales and biases


@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "low_rank(2)", "local"])
@pytest.mark.parametrize("field", ["params", "macs"])
def test_matched_widths_are_the_nearest_to_the_target(field: str, tying: str) -> None:
    model = compose_model("elsayed2020", tying=tying, match=field, match_tying="low_rank(4)")
    target = total_count(specify_layers(compose_model("elsayed2020", tying="low_rank(4)"), CIFAR), field)
    assert match_target(model, CIFAR) == target
    matched = specify_layers(model, CIFAR)
    achieved = total_count(matched, field)
    for change in (-1, 1):  # with one feature less or more in every layer the count is further away
        features = [layer.geometry.features + change for layer in matched[:-1]]
        other = total_count(
            specify_layers(compose_model("elsayed2020", tying=tying, features=features), CIFAR), field
        )
        assert abs(math.log(achieved / target)) < abs(math.log(other / target))


def test_matching_a_network_with_itself_changes_nothing() -> None:
    model = compose_model("elsayed2020", match="params")
    assert specify_layers(model, CIFAR) == specify_layers(compose_model("elsayed2020"), CIFAR)


def test_single_sizes_for_a_signal_are_lengths() -> None:
    signal = DataShape(image=(40, 1, 1), classes=10, train_images=100, test_images=100)
    first = specify_layers(compose_model("simple_cnn", kernel_size=5, stride=2), signal)[0]
    assert (first.geometry.kernel_size, first.geometry.stride, first.pool_size) == ((5, 1), (2, 1), (2, 1))
