"""Residual networks, normalisation and dropout: counts of the papers, and training of every kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnexp.config import parse
from cnnexp.core.errors import UsageError
from cnnexp.data.shapes import infer_shape
from cnnexp.models.network import TiedNetwork, embed_network
from cnnexp.models.spec import specify_layers, specify_network, total_count
from cnnexp.nn.ops import convolution
from tests.conftest import SMALL, Configure
from tests.models.test_network import CIFAR

RESNET: dict[str, Any] = {"name": "resnet", "depth": 8, "width": 4}


def configure_resnet(**changes: Any) -> Any:
    """A small residual network on the small images of the tests."""
    model = RESNET | {key: changes.pop(key) for key in [*changes] if key not in SMALL}
    return parse({**SMALL, **changes, "model": model})


def residual_spec(**model: Any) -> Any:
    """The layers of a residual network on CIFAR-10."""
    return specify_layers(configure_resnet(**model).model, CIFAR)


@pytest.mark.parametrize(
    ("depth", "shortcut", "params"),
    # With the biases and scales of batch normalisation; He (2016) rounds them to 0.27M, 0.46M and 0.85M.
    [
        (20, "identity", 269_722),
        (32, "identity", 464_154),
        (56, "identity", 853_018),
        (20, "projection", 272_474),
        (20, "none", 269_722),
    ],
)
def test_parameters_are_those_of_the_paper(depth: int, shortcut: str, params: int) -> None:
    layers = residual_spec(depth=depth, width=16, shortcut=shortcut)
    assert total_count(layers, "params") == params


def test_a_first_layer_with_stride_2_halves_every_stage() -> None:
    sides = [[layer.out_shape[0] for layer in residual_spec(stem_stride=stride)] for stride in (1, 2)]
    assert sides == [[32, 32, 32, 16, 16, 8, 1, 1], [16, 16, 16, 8, 8, 4, 1, 1]]


def test_the_layout_of_large_convolutions_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure_resnet(width=8, norm="batch")
    net = TiedNetwork(specify_network(config), rngs=nnx.Rngs(0))
    graph, params, variables = nnx.split(net, nnx.Param, ...)
    images = jax.random.normal(jax.random.key(0), (8, *net.layers[0].geometry.in_shape))

    def loss(params: Any) -> jax.Array:
        return (nnx.merge(graph, params, variables, copy=True)(images) ** 2).mean()

    results, convolutions = [], []
    for largest in (2**15, 0):
        monkeypatch.setattr(convolution, "CPU_PATCH_NUMBERS", largest)
        compute = jax.value_and_grad(lambda params: loss(params))
        results.append(jax.tree.leaves(jax.jit(compute)(params)))
        convolutions.append("conv_general_dilated" in str(jax.make_jaxpr(compute)(params)))
    assert convolutions == [False, True]
    for products, xla in zip(*results, strict=True):
        np.testing.assert_allclose(xla, products, atol=1e-4 * float(jnp.abs(products).max() + 1e-3))


def reference_forward(net: TiedNetwork, x: jax.Array, blocks: int, shortcut: str) -> jax.Array:
    """The network of He (2016) written out with `lax.conv`, from the parameters of ours."""

    def normalise(name: str, y: jax.Array) -> jax.Array:
        norm = getattr(net, f"{name}_norm")
        y = (y - norm.mean[...]) / jnp.sqrt(norm.var[...] + 1e-5)
        return y * norm.scale[...] + norm.bias[...]

    def convolve(name: str, y: jax.Array, stride: int = 1) -> jax.Array:
        kernel = getattr(net, name).bank[...][0]
        y = jax.lax.conv_general_dilated(
            y, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return normalise(name, y)

    x = jax.nn.relu(convolve("stem", x))
    for stage in range(3):
        for block in range(blocks):
            name, stride = f"stage_{stage}_block_{block}", 2 if stage and not block else 1
            y = jax.nn.relu(convolve(f"{name}_conv_0", x, stride))
            y = convolve(f"{name}_conv_1", y)
            if shortcut == "none":
                x = jnp.zeros_like(y)
            elif stride == 2 and shortcut == "projection":
                x = convolve(f"{name}_shortcut", x, 2)
            elif stride == 2:
                x = jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, x.shape[-1]),))
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ net.head.bank[...][0, 0, 0] + net.head.bias[...][0]


@pytest.mark.parametrize("shortcut", ["identity", "projection", "none"])
def test_a_residual_network_is_that_of_the_paper(shortcut: str) -> None:
    spec = residual_spec(depth=14, width=2, shortcut=shortcut)

    @jax.jit  # one program: operation by operation, most of the time is compilation
    def apply_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        net = TiedNetwork(spec, rngs=nnx.Rngs(0))
        for _ in range(2):
            net(x)  # statistics that are not those of the start
        net.eval()
        return net(x), reference_forward(net, x, 2, shortcut)

    y, expected = apply_both(jax.random.normal(jax.random.key(0), (4, *CIFAR.image)))
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    assert np.ptp(y) > 0.05


@pytest.mark.parametrize(
    "model",
    [{}, {"tying": ["shared", "tiled(2)", "local"]}, {"shortcut": "projection"}, {"shortcut": "none"}],
)
@pytest.mark.parametrize("norm", [{"norm": "batch"}, {"norm": "group", "norm_groups": 2}, {"norm": "none"}])
def test_counts_are_those_of_the_network(model: dict[str, Any], norm: dict[str, Any]) -> None:
    layers = specify_network(configure_resnet(**model, **norm))
    network = nnx.eval_shape(lambda: TiedNetwork(layers, rngs=nnx.Rngs(0)))
    params = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert total_count(layers, "params") == sum(leaf.size for leaf in params)


@pytest.mark.parametrize("tying", ["tiled(2)", "local"])
def test_an_embedded_residual_network_computes_the_same_function(tying: str) -> None:
    config = configure_resnet(width=2)
    spec, shape = specify_network(config), (4, *infer_shape(config.data).image)

    @jax.jit
    def apply_both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        net = TiedNetwork(spec, rngs=nnx.Rngs(0))
        for seed in range(2):
            net(jax.random.normal(jax.random.key(seed), shape))
        embedded = embed_network(net, tying=tying)
        net.eval()
        embedded.eval()
        return embedded(x), net(x)

    embedded_y, y = apply_both(jax.random.normal(jax.random.key(0), shape))
    np.testing.assert_allclose(embedded_y, y, rtol=1e-4, atol=1e-4)
    assert np.ptp(y) > 0.05


def test_shapes_that_cannot_be_are_refused(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"model.depth=9: must be 2 \+ 6 n, such as 8 or 20"):
        configure_resnet(depth=9)
    with pytest.raises(UsageError, match="must be one value, or a list of 3"):
        configure_resnet(tying=["local", "shared"])
    with pytest.raises(UsageError, match=r"model.norm_groups=3: must divide the 4 channels of layer stem"):
        specify_network(configure_resnet(norm="group", norm_groups=3))
    with pytest.raises(UsageError, match=r"model.norm_tying=dense"):
        configure(model={"norm_tying": "dense"})
