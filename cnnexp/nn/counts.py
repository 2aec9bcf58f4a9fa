"""Parameters, connections and operations of a layer, from its geometry and tying alone."""

import math
from dataclasses import dataclass
from functools import lru_cache

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying, bias_shape, count_weights


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one layer.

    Attributes:
        params: Distinct trainable numbers, biases included.
        weights: Distinct trainable numbers, biases excluded.
        connections: Nonzeros of the equivalent dense matrix (input units x output units).
        sparsity: `1 - connections / (input units x output units)`.
        sharing: Connections / weights: how often each weight is used on average.
        macs: Multiply-accumulates of one forward pass of one image, padding not counted. `low_rank`
            convolves with each of its r kernels, then mixes the r results.
    """

    params: int
    weights: int
    connections: int
    sparsity: float
    sharing: float
    macs: int


@lru_cache(maxsize=4096)  # a sweep asks for the same layers again and again
def count(geometry: Geometry, tying: Tying | str, bias: str) -> Counts:
    """Count the parameters, connections and operations of one layer.

    Args:
        geometry: The geometry of the layer.
        tying: The tying of its kernels, or the text of it.
        bias: The tying of its biases: `same`, `none`, or the text of a tying.

    Example usage::

      >>> from cnnexp.nn.geometry import Geometry
      >>> geometry = Geometry(in_shape=(8, 8, 1), features=1, kernel_size=(3, 3), padding="VALID")
      >>> count(geometry, "shared", bias="none").sharing  # each weight is used at 6 x 6 positions
      36.0
    """
    tying = Tying.parse(tying)
    pairs = geometry.in_units * geometry.out_units
    local = geometry.count_unpadded_entries() * geometry.in_shape[2] * geometry.features
    connections = pairs if tying.kind == "dense" else local
    weights = count_weights(geometry, tying)
    mixed = tying.size * (connections + geometry.out_units)
    return Counts(
        params=weights + math.prod(bias_shape(geometry, tying, bias)),
        weights=weights,
        connections=connections,
        sparsity=1 - connections / pairs,
        sharing=connections / weights,
        macs=mixed if tying.kind == "low_rank" else connections,
    )
