"""The specification of one layer of a network: its shapes, its parameters and its counts."""

import math
from dataclasses import dataclass, replace

from cnnexp.config.model import Activation, DType, Lowering
from cnnexp.nn.geometry import Geometry, Norm, Pool
from cnnexp.nn.tying import Counts, Tying, bias_shape, count_layer, count_weights, norm_shape


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """A tied layer, then normalisation, a residual connection, activation, pooling and dropout.

    Attributes:
        source: The layer whose output is the input; None: the layer before.
        shortcut: The layer whose output is added before the activation: strided, and padded with channels of
            zeros, where it is larger and has fewer channels (option A of He 2016).
    """

    name: str
    geometry: Geometry
    tying: Tying = Tying("shared")  # noqa: RUF009  (a frozen value)
    bias: str = "shared"
    activation: Activation = "identity"
    threshold: float | None = None
    pool: Pool = "none"
    pool_size: tuple[int, int] = (1, 1)
    blur_size: tuple[int, int] = (1, 1)
    norm: Norm = "none"
    norm_tying: Tying = Tying("shared")  # noqa: RUF009
    norm_groups: int = 1
    dropout: float = 0.0
    source: str | None = None
    shortcut: str | None = None
    lowering: Lowering = "auto"
    dtype: DType | None = None
    param_dtype: DType = "float32"

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width and channels after pooling."""
        h, w, c = self.geometry.out_shape
        return h // self.pool_size[0], w // self.pool_size[1], c

    @property
    def params(self) -> int:
        """Number of parameters; cheap also where the connections are too many to be counted."""
        biases = math.prod(bias_shape(self.geometry, self.tying, self.bias))
        return count_weights(self.geometry, self.tying) + biases + self._other_params

    @property
    def counts(self) -> Counts:
        """Parameters and MACs (with those of normalisation and activation), and connections of the layer.

        Normalising a unit is one multiply-accumulate, as its statistics are known in evaluation.
        """
        counts = count_layer(self.geometry, self.tying, self.bias)
        macs = 0 if self.norm == "none" else self.geometry.out_units
        return replace(counts, params=counts.params + self._other_params, macs=counts.macs + macs)

    @property
    def _other_params(self) -> int:
        """Parameters of the normalisation and of the activation."""
        norm = 0 if self.norm == "none" else 2 * math.prod(norm_shape(self.geometry, self.norm_tying))
        return norm + (self.threshold is not None)


@dataclass(frozen=True, kw_only=True)
class OtherLayers(LayerSpec):
    """All that is not a tied layer in a network of the user, as one layer from the image to the classes.

    Attributes:
        other_params: Its parameters.
        other_macs: The multiply-accumulates of its matrix products and convolutions for one image.
        activations: The numbers that these put out for one image.
    """

    other_params: int
    other_macs: int
    activations: int

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.other_params

    @property
    def counts(self) -> Counts:
        """Parameters and MACs; connections are taken to be as many as MACs, as in a layer without padding."""
        pairs = self.geometry.in_units * self.geometry.out_units
        return Counts(
            params=self.other_params,
            weights=self.other_params,
            connections=self.other_macs,
            sparsity=1 - self.other_macs / pairs,
            sharing=self.other_macs / max(self.other_params, 1),
            macs=self.other_macs,
        )


NetworkSpec = tuple[LayerSpec, ...]
