"""What a layer costs and owns, from its geometry and tying alone: nothing is allocated."""

import math
from dataclasses import dataclass

from cnnexp.layers.geometry import Geometry
from cnnexp.layers.tying import BiasTying, Tying, bias_shape, weights


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one layer.

    Attributes:
        params: distinct trainable numbers, bias included.
        weights: the same without the bias.
        connections: nonzeros of the equivalent dense matrix (input units x output units).
        sparsity: `1 - connections / (input units x output units)`.
        sharing: connections / weights: how often each weight is used.
        macs: multiply-accumulates of one forward pass for one image; padding is not counted.
    """

    params: int
    weights: int
    connections: int
    sparsity: float
    sharing: float
    macs: int


def count(geometry: Geometry, tying: Tying, bias: BiasTying) -> Counts:
    """Count one layer."""
    pairs = geometry.in_units * geometry.out_units
    inside = geometry.taps_inside() * geometry.in_shape[2] * geometry.features
    connections = pairs if tying == "dense" else inside
    owned = weights(geometry, tying)
    return Counts(
        params=owned + math.prod(bias_shape(geometry, bias)),
        weights=owned,
        connections=connections,
        sparsity=1 - connections / pairs,
        sharing=connections / owned,
        macs=connections,
    )
