"""Tyings: the rules by which output positions use the kernel bank of a layer.

A tying is a value. Together with a geometry it decides the layer: how many kernels the bank has, their size,
which kernel, or which mixture of kernels, each output position uses, and what the layer costs.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Int

from cnnexp.nn.geometry import Geometry

Kind = Literal["shared", "tiled", "blocked", "low_rank", "local", "dense"]
SIZED = ("tiled", "blocked", "low_rank")
LOW_RANK_OPTIONS = (("softmax", "free"), ("separable", "full"))  # of the mixing weights: one of each pair
TYING_NAMES = ["shared", "tiled(t)", "blocked(g)", "low_rank(r[,free][,full])", "local", "dense"]
BIAS_NAMES = ["same", "shared", "tiled(t)", "blocked(g)", "local", "none"]
NORM_TYING_NAMES = [name for name in BIAS_NAMES if name != "none"]


@dataclass(frozen=True)
class Tying:
    """A way to tie the kernels of a layer across its output positions.

    `str(tying)` and `Tying.parse` are inverse.

    Examples:
        >>> Tying.parse("tiled(2)")
        Tying(kind='tiled', size=2, softmax=True, separable=True)
        >>> str(Tying("low_rank", 4, softmax=False))
        'low_rank(4,free)'

    Attributes:
        kind: `shared` has one kernel for all positions, a convolution. In `tiled`, kernels alternate with
            period `size` down and across (Le & Ngiam 2010). `blocked` has one kernel for each region of a
            `size` x `size` grid (Taigman 2014). In `low_rank`, each position mixes `size` kernels (Elsayed
            2020). `local` has one kernel per position, and `dense` one per position, as large as the image.
        size: The period t, the grid g or the rank r; 1 for the other kinds.
        softmax: Whether the mixing weights of `low_rank` are positive and sum to one, or free.
        separable: Whether the mixing weights of `low_rank` are a term of the row plus a term of the column,
            or independent at each position.
    """

    kind: Kind
    size: int = 1
    softmax: bool = True
    separable: bool = True

    def __str__(self) -> str:
        if self.kind not in SIZED:
            return self.kind
        options = ["free"] * (not self.softmax) + ["full"] * (not self.separable)
        return f"{self.kind}({','.join([str(self.size), *options])})"

    @classmethod
    def parse(cls, text: "str | Tying") -> "Tying":
        """Parse the text of a tying: its kind, and in brackets its size and, for `low_rank`, its options.

        Args:
            text: For example `shared`, `tiled(2)` or `low_rank(4,free)`; or a tying, which is returned. The
                options are `softmax` (the default) or `free`, and `separable` (the default) or `full`.

        Raises:
            ValueError: The text is not a tying.
        """
        if isinstance(text, Tying):
            return text
        match = re.fullmatch(r"(\w+)\s*(?:\(\s*(\d+)((?:\s*,\s*\w+)*)\s*\))?", text.strip())
        kind, size, listed_options = match.groups() if match else (text, None, None)
        options = set(re.findall(r"\w+", listed_options or ""))
        known_options = set().union(*LOW_RANK_OPTIONS) if kind == "low_rank" else set()
        has_valid_size = int(size or 0) > 0 if kind in SIZED else size is None
        if kind not in get_args(Kind) or not has_valid_size or not options <= known_options:
            raise ValueError(f"not a tying: {text}; allowed: {', '.join(TYING_NAMES)}")
        for pair in LOW_RANK_OPTIONS:
            if options.issuperset(pair):
                raise ValueError(f"not a tying: {text}; {pair[0]} and {pair[1]} contradict each other")
        return cls(
            kind=cast(Kind, kind),
            size=int(size or 1),
            softmax="free" not in options,
            separable="full" not in options,
        )

    @property
    def selects_one_kernel(self) -> bool:
        """Return whether each position uses one kernel of the bank, rather than a mixture."""
        return self.kind != "low_rank"


def kernel_index(geometry: Geometry, tying: Tying) -> Int[np.ndarray, "oh ow"]:
    """Return the index of the kernel that each output position uses; it is 0 everywhere for `low_rank`."""
    rows, columns = (_axis_classes(size, tying) for size in geometry.out_size)
    return rows[:, None] * (columns.max() + 1) + columns[None, :]


def count_kernels(geometry: Geometry, tying: Tying) -> int:
    """Count the distinct kernels in the bank."""
    if tying.kind == "low_rank":
        return tying.size
    return math.prod(_axis_kernels(size, tying) for size in geometry.out_size)


def kernel_geometry(geometry: Geometry, tying: Tying) -> Geometry:
    """Return the geometry of one kernel of the bank: those of `dense` are as large as the image."""
    if tying.kind != "dense":
        return geometry
    return replace(geometry, kernel_size=geometry.in_shape[:2], dilation=(1, 1), connectivity="local")


def bank_shape(geometry: Geometry, tying: Tying) -> tuple[int, int, int, int, int]:
    """Return the shape `(R, kh, kw, c_in, c_out)` of the bank of R distinct kernels."""
    size = kernel_geometry(geometry, tying).kernel_size
    return (count_kernels(geometry, tying), *size, geometry.in_shape[2], geometry.features)


def mixing_shapes(geometry: Geometry, tying: Tying) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the trained mixing weights of `low_rank` by name; other tyings have none."""
    if tying.kind != "low_rank":
        return {}
    (oh, ow), rank = geometry.out_size, tying.size
    return {"rows": (oh, rank), "columns": (ow, rank)} if tying.separable else {"positions": (oh, ow, rank)}


def parse_bias_tying(tying: Tying, bias: str) -> Tying | None:
    """Parse the tying of a bias: `same` is that of the weights, `none` is no bias.

    Raises:
        ValueError: The text is not a tying of a bias.
    """
    if bias == "none":
        return None
    parsed = tying if bias == "same" else Tying.parse(bias)
    if bias != "same" and parsed.kind in ("low_rank", "dense"):
        raise ValueError(f"not a tying of a bias: {bias}; allowed: {', '.join(BIAS_NAMES)}")
    return parsed


def bias_shape(geometry: Geometry, tying: Tying, bias: str) -> tuple[int, int]:
    """Return the shape `(R, c_out)` of the bank of biases; R is 0 where there is no bias."""
    parsed = parse_bias_tying(tying, bias)
    return (0 if parsed is None else count_kernels(geometry, parsed), geometry.features)


def parse_norm_tying(tying: Tying, norm: str) -> Tying:
    """Parse the tying of a normalisation: `same` is that of the weights.

    Mixed kernels divide the positions into no groups, so that for `low_rank` `same` is `shared`.

    Raises:
        ValueError: The text is not a tying of a normalisation.
    """
    if norm == "same":
        same = {"low_rank": Tying("shared"), "dense": Tying("local")}
        return same.get(tying.kind, tying)
    parsed = Tying.parse(norm)
    if parsed.kind in ("low_rank", "dense"):
        raise ValueError(f"not a tying of a normalisation: {norm}; allowed: {', '.join(NORM_TYING_NAMES)}")
    return parsed


def norm_shape(geometry: Geometry, tying: Tying) -> tuple[int, int]:
    """Return the shape `(R, c_out)` of the scales of a normalisation, and of its biases."""
    return count_kernels(geometry, tying), geometry.features


def fan_in(geometry: Geometry, tying: Tying) -> int:
    """Return the number of inputs of one output unit, which sets the initial scale."""
    return geometry.in_units if tying.kind == "dense" else geometry.fan_in


def count_weights(geometry: Geometry, tying: Tying) -> int:
    """Count the distinct trainable numbers of the layer: mixing weights included, biases excluded."""
    mixing = sum(math.prod(shape) for shape in mixing_shapes(geometry, tying).values())
    return math.prod(bank_shape(geometry, tying)) + mixing


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
def count_layer(geometry: Geometry, tying: Tying | str, bias: str) -> Counts:
    """Count the parameters, connections and operations of one layer.

    Args:
        geometry: The geometry of the layer.
        tying: The tying of its kernels, or the text of it.
        bias: The tying of its biases: `same`, `none`, or the text of a tying.

    Examples:
        >>> from cnnexp.nn.geometry import Geometry
        >>> geometry = Geometry(in_shape=(8, 8, 1), features=1, kernel_size=(3, 3), padding="VALID")
        >>> count_layer(geometry, "shared", bias="none").sharing  # each weight is used at 6 x 6 positions
        36.0
    """
    tying = Tying.parse(tying)
    pairs = geometry.in_units * geometry.out_units
    windowed = geometry.count_unpadded_entries() * geometry.in_shape[2] * geometry.features
    connections = pairs if tying.kind == "dense" else windowed
    weights = count_weights(geometry, tying)
    mixture_macs = tying.size * (connections + geometry.out_units)
    return Counts(
        params=weights + math.prod(bias_shape(geometry, tying, bias)),
        weights=weights,
        connections=connections,
        sparsity=1 - connections / pairs,
        sharing=connections / weights,
        macs=mixture_macs if tying.kind == "low_rank" else connections,
    )


def _axis_kernels(size: int, tying: Tying) -> int:
    # The number of rows (or columns) of kernels: of the classes of `_axis_classes`.
    if tying.kind in ("tiled", "blocked"):
        return min(tying.size, size)
    return size if tying.kind in ("local", "dense") else 1


def _axis_classes(size: int, tying: Tying) -> Int[np.ndarray, " size"]:
    """Return the row (or column) of kernels that each output row (or column) uses."""
    positions = np.arange(size)
    match tying.kind:
        case "tiled":
            return positions % tying.size
        case "blocked":
            return positions * min(tying.size, size) // size
        case "local" | "dense":
            return positions
        case _:
            return np.zeros(size, int)
