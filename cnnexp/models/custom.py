"""Networks of the user: they are made by a function, checked, and counted without being allocated."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from cnnexp.config import RunConfig
from cnnexp.config.model import CustomModel
from cnnexp.core.errors import UsageError, describe_exception
from cnnexp.core.plugins import MODELS, check_options, load_function
from cnnexp.data.images import DataShape
from cnnexp.data.shapes import infer_shape
from cnnexp.models.layers import LayerSpec, NetworkSpec, OtherLayers
from cnnexp.models.network import TiedNetwork, build_from_convolution, list_tied_layers
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import Tying

RESERVED = ("shape", "classes", "rngs")  # arguments that every function receives


def register_model(name: str) -> Callable[[Callable[..., nnx.Module]], Callable[..., nnx.Module]]:
    """Register a function that makes networks, for `model=custom model.target=NAME`.

    A package registers its networks in a module that it names as an entry point of the group `cnnexp`.

    Examples:
        >>> from flax import nnx
        >>> import cnnexp
        >>> @cnnexp.register_model("doctest_linear")
        ... def make(shape, classes, *, rngs, scale=1.0):
        ...     height, width, channels = shape
        ...     return nnx.Linear(height * width * channels, classes, rngs=rngs)
    """
    return MODELS.register(name)


def tying_of(options: dict[str, Any], default: str = "shared") -> Tying:
    """Return the tying among the options of a network's function: what `model.tying` names.

    Examples:
        >>> tying_of({"width": 16, "tying": "tiled(2)"}).size
        2
    """
    return Tying.parse(options.get("tying", default))


def make_custom_network(model: CustomModel, shape: DataShape, *, rngs: nnx.Rngs) -> nnx.Module:
    """Make a custom network by calling the function of the user.

    Raises:
        UsageError: There is no such function, it does not take the options, or it returns no module.
    """
    key, target = model.function
    function = load_function(key, target, registry=MODELS)
    check_options("model.options", function, model.arguments, RESERVED)
    network = function(shape.image, shape.classes, rngs=rngs, **model.arguments)
    if not isinstance(network, nnx.Module):
        name = type(network).__name__
        raise UsageError(f"{key}={target}: must return a flax.nnx.Module (got {name})")
    return network


def build_network(config: RunConfig, layers: NetworkSpec, *, rngs: nnx.Rngs) -> nnx.Module:
    """Build the network of a run, in training mode.

    Args:
        config: The configuration of the run.
        layers: The specification of its layers, from `specify_network`.
        rngs: The stream `params` draws the parameters; the stream `dropout` draws the dropout masks.

    Returns:
        A module that maps images `(b, h, w, c)` to logits `(b, classes)`.
    """
    if isinstance(config.model, CustomModel):
        return make_custom_network(config.model, infer_shape(config.data), rngs=rngs)
    build = TiedNetwork if config.train.tied_steps is None else build_from_convolution
    return build(layers, rngs=rngs)


def specify_custom_layers(model: CustomModel, shape: DataShape) -> NetworkSpec:
    """List the tied layers of a custom network, and all else as one layer; nothing is allocated.

    Raises:
        UsageError: The network cannot be made, or does not map images to logits.
    """
    return _specify_cached(model.model_dump_json(), shape)


@lru_cache(maxsize=256)
def _specify_cached(model_json: str, shape: DataShape) -> NetworkSpec:
    """Specify the layers of a custom network; its section is given as JSON, which the cache can hash."""
    model = CustomModel.model_validate_json(model_json)
    network = nnx.eval_shape(lambda: make_custom_network(model, shape, rngs=nnx.Rngs(0)))
    network.eval()
    _check_logits(model, network, shape)
    tied = list_tied_layers(network)
    layers = [_specify_tied_layer(name, layer) for name, layer in tied.items()]
    params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
    macs, activations = _count_other(network, shape)
    height, width, _ = shape.image
    other = OtherLayers(
        name="other",
        geometry=Geometry(
            in_shape=shape.image, features=shape.classes, kernel_size=(height, width), padding="VALID"
        ),
        other_params=params - sum(layer.params for layer in layers),
        other_macs=macs,
        activations=activations,
    )
    return (*layers, other)


def _check_logits(model: CustomModel, network: nnx.Module, shape: DataShape) -> None:
    key, target = model.function
    graph, state = nnx.split(network)
    images = jax.ShapeDtypeStruct((2, *shape.image), jnp.float32)
    try:
        logits = jax.eval_shape(lambda state, x: cast(Any, nnx.merge(graph, state))(x), state, images)
    except Exception as error:
        size = "x".join(map(str, shape.image))
        raise UsageError(
            f"{key}={target}: the network fails on {size} images: {describe_exception(error)}"
        ) from error
    result = getattr(logits, "shape", type(logits).__name__)
    if result != (2, shape.classes):
        raise UsageError(
            f"{key}={target}: two images must give logits of shape (2, {shape.classes}) (got {result})"
        )


def _specify_tied_layer(name: str, layer: TiedConv) -> LayerSpec:
    """Return the specification that describes a layer which exists already."""
    bias = "none" if layer.bias_tying is None else str(layer.bias_tying)
    return LayerSpec(
        name=name,
        geometry=layer.geometry,
        tying=layer.tying,
        bias="same" if layer.bias_tying == layer.tying else bias,
        lowering=layer.lowering,
    )


def _count_other(network: nnx.Module, shape: DataShape) -> tuple[int, int]:
    """Count the MACs of products and convolutions outside of tied layers, and the size of their outputs."""

    def skip(layer: TiedConv, x: jax.Array, layout: str = "NHWC") -> jax.Array:
        sizes = dict(zip("HWC", layer.geometry.out_shape, strict=True)) | {"N": x.shape[layout.index("N")]}
        return jnp.zeros([sizes[axis] for axis in layout], x.dtype)

    images = jax.ShapeDtypeStruct((1, *shape.image), jnp.float32)
    with mock.patch.object(TiedConv, "__call__", skip):  # as flax.nnx.tabulate replaces calls to record them
        graph, state = nnx.split(network)
        traced = jax.make_jaxpr(lambda state, x: cast(Any, nnx.merge(graph, state))(x))(state, images)
    counts = list(_list_products(traced.jaxpr))
    return sum(macs for macs, _ in counts), sum(outputs for _, outputs in counts)


def _list_products(jaxpr: Jaxpr) -> Iterator[tuple[int, int]]:
    """Yield the MACs and the output size of each product; a product in a loop counts once."""
    for equation in jaxpr.eqns:
        shapes: list[Any] = [
            getattr(variable.aval, "shape", ()) for variable in (*equation.invars, *equation.outvars)
        ]
        outputs = math.prod(shapes[-1]) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield outputs * math.prod(shapes[0][axis] for axis in contracted), outputs
        elif equation.primitive.name == "conv_general_dilated":
            features = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
            yield outputs * math.prod(shapes[1]) // features, outputs
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _list_products(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from _list_products(inner)
