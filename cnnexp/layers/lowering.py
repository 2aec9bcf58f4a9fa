"""How the two basic maps are computed: a convolution, and one kernel for each position."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnnexp.layers.geometry import Geometry
from cnnexp.layers.patches import padded, patches

Lowering = Literal["auto", "conv", "matmul"]
IMAGES = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    geometry: Geometry,
    lowering: Lowering = "auto",
) -> Float[Array, "b oh ow o"]:
    """A convolution; `geometry.features` is not read."""
    if lowering == "auto":
        lowering = "matmul" if jax.default_backend() == "cpu" else "conv"
    if lowering == "matmul":
        return patches(x, geometry) @ kernel.reshape(-1, kernel.shape[-1])
    return lax.conv_general_dilated(
        padded(x, geometry),
        kernel,
        geometry.stride,
        "VALID",
        rhs_dilation=geometry.dilation,
        dimension_numbers=IMAGES,
    )


def per_position(
    x: Float[Array, "b h w c"],
    kernels: Float[Array, "oh ow kh kw c o"],
    geometry: Geometry,
    lowering: Lowering = "auto",
) -> Float[Array, "b oh ow o"]:
    """A locally connected layer: each position has its kernel."""
    oh, ow, kh, kw, c, o = kernels.shape
    if lowering == "conv":
        by_channel = kernels.transpose(0, 1, 4, 2, 3, 5).reshape(oh, ow, c * kh * kw, o)
        return lax.conv_general_dilated_local(
            padded(x, geometry),
            by_channel,
            geometry.stride,
            "VALID",
            geometry.kernel_size,
            rhs_dilation=geometry.dilation,
            dimension_numbers=IMAGES,
        )
    # With positions first, the patches are ready for one matmul a position: transposing the image is
    # cheap, transposing its patches, which are kh * kw times as large, is not.
    columns = patches(x, geometry, batch_axis=2)
    return jnp.einsum("hwbi,hwio->hwbo", columns, kernels.reshape(oh, ow, -1, o)).transpose(2, 0, 1, 3)
