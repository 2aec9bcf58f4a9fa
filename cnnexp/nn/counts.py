"""What a layer costs and owns, from its geometry and tying alone: nothing is allocated."""

import math
from dataclasses import dataclass
from functools import lru_cache

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tying import Tying, bias_shape, count_weights


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one layer.

    Attributes:
        params: distinct trainable numbers, bias included.
        weights: the same without the bias.
        connections: nonzeros of the equivalent dense matrix (input units x output units).
        sparsity: `1 - connections / (input units x output units)`.
        sharing: connections / weights: how often each weight is used.
        macs: multiply-accumulates of one forward pass for one image; padding is not counted. `low_rank`
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
    """Count one layer."""
    tying = Tying.parse(tying)
    pairs = geometry.in_units * geometry.out_units
    inside = geometry.count_unpadded_entries() * geometry.in_shape[2] * geometry.features
    connections = pairs if tying.kind == "dense" else inside
    owned = count_weights(geometry, tying)
    mixed = tying.size * (connections + geometry.out_units)
    return Counts(
        params=owned + math.prod(bias_shape(geometry, tying, bias)),
        weights=owned,
        connections=connections,
        sparsity=1 - connections / pairs,
        sharing=connections / owned,
        macs=mixed if tying.kind == "low_rank" else connections,
    )
