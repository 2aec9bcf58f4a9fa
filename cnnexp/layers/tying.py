"""How output positions use a layer's kernel bank.

A tying is a value. With a geometry it decides the layer: how many kernels the bank owns, their size,
and which kernel each output position uses.
"""

import math
from dataclasses import replace
from typing import Literal, get_args

from cnnexp.layers.geometry import Geometry

Tying = Literal["shared", "local", "dense"]
BiasTying = Literal["shared", "local", "none"]
TYINGS: tuple[str, ...] = get_args(Tying)


def kernel_geometry(geometry: Geometry, tying: Tying) -> Geometry:
    """The geometry of one kernel of the bank: `dense` looks at the whole image from every position."""
    if tying != "dense":
        return geometry
    return replace(geometry, kernel_size=geometry.in_shape[:2])


def bank_shape(geometry: Geometry, tying: Tying) -> tuple[int, int, int, int, int]:
    """Shape `(R, kh, kw, c_in, c_out)` of the bank: R distinct kernels."""
    kernels = 1 if tying == "shared" else geometry.positions
    size = kernel_geometry(geometry, tying).kernel_size
    return (kernels, *size, geometry.in_shape[2], geometry.features)


def bias_shape(geometry: Geometry, bias: BiasTying) -> tuple[int, ...]:
    """Shape of the bias: `(c_out,)` shared by all positions, `(oh, ow, c_out)` local, `(0,)` none."""
    if bias == "none":
        return (0,)
    return geometry.out_shape if bias == "local" else (geometry.features,)


def fan_in(geometry: Geometry, tying: Tying) -> int:
    """Inputs of one output unit, which set the initial scale: never read off the bank's shape."""
    return geometry.in_units if tying == "dense" else geometry.fan_in


def weights(geometry: Geometry, tying: Tying) -> int:
    """Distinct trainable numbers of the bank, without the bias."""
    return math.prod(bank_shape(geometry, tying))
