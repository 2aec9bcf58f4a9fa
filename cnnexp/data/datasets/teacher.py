"""Gaussian signals, labelled by a random network with one tied layer: the teacher."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.synthetic import Teacher
from cnnexp.core.errors import UsageError
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.nn.tying import SIZED, Tying

REFERENCE_SIGNALS = 8192  # from which the mean and deviation of each class's output are estimated


class TeacherState(NamedTuple):
    """The arrays of a teacher.

    Attributes:
        layer: The parameters of its tied layer.
        head: The weights of its linear functions.
        mean: The mean of each linear function over signals.
        std: The standard deviation of each.
    """

    layer: Any
    head: Float[Array, "features classes"]
    mean: Float[Array, " classes"]
    std: Float[Array, " classes"]


@register_dataset(Teacher)
class TeacherSet(SyntheticSet[Teacher]):
    """Signals with the labels of a teacher."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a signal, and the number of classes."""
        return Inputs((self.data.length, 1, 1), self.data.classes)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Draw the teacher, and estimate the mean and deviation of its outputs."""
        layer_key, mixing_key, head_key, signals_key = random.split(task_key, 4)
        layer = draw_layer(self.data, layer_key, mixing_key)
        head = random.normal(head_key, (self.data.features, self.data.classes))
        signals = random.normal(signals_key, (REFERENCE_SIGNALS, self.data.length, 1, 1))
        outputs = jax.jit(compute_features)(layer, signals) @ head
        definition, parameters = nnx.split(layer)
        state = TeacherState(parameters, head, outputs.mean(0), outputs.std(0))
        return Task(partial(_draw_labelled, self.data, definition), state)

    def check_keys(self) -> None:
        """Check that the teacher's windows fit into a signal, and its tying onto its positions."""
        data, tying = self.data, Tying.parse(self.data.tying)
        if data.kernel_size > data.length:
            raise UsageError(
                f"data.kernel_size={data.kernel_size}: must be at most data.length={data.length}"
            )
        positions = data.length - data.kernel_size + 1
        if tying.kind in SIZED and tying.size > positions:
            limit = f"{tying.kind}({positions}), the positions of the teacher"
            raise UsageError(f"data.tying={data.tying}: must be at most {limit}")


def draw_layer(data: Teacher, layer_key: Key[Array, ""], mixing_key: Key[Array, ""]) -> TiedConv:
    """Draw the tied layer of a teacher; the mixing weights of `low_rank` differ from position to position."""
    geometry = Geometry(
        in_shape=(data.length, 1, 1),
        features=data.features,
        kernel_size=(data.kernel_size, 1),
        padding="VALID",
    )
    rngs = nnx.Rngs(params=layer_key)
    layer = TiedConv.from_geometry(geometry, tying=data.tying, bias="none", gain=2.0, rngs=rngs)
    if layer.tying.kind == "low_rank":
        name = "mix_rows" if layer.tying.separable else "mix_positions"  # a signal has a single column
        mixing = getattr(layer, name)
        mixing[...] = data.mixing * random.normal(mixing_key, mixing.shape)
    return layer


def compute_features(layer: TiedConv, signals: Float[Array, "b n 1 1"]) -> Float[Array, "b features"]:
    """Apply a teacher's layer, rectify, and average over positions."""
    return jax.nn.relu(layer(signals)).mean((1, 2))


def _draw_labelled(
    data: Teacher, definition: Any, state: TeacherState, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 1"], Int[Array, ""]]:
    """Draw a signal x ~ N(0, I) and label it with the teacher's largest standardised output."""
    signal = random.normal(key, (data.length, 1, 1))
    features = compute_features(nnx.merge(definition, state.layer), signal[None])[0]
    outputs = (features @ state.head - state.mean) / state.std
    return signal, outputs.argmax().astype(jnp.int32)
