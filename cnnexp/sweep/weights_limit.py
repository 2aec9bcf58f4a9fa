"""Which runs of a sweep store their weights: as many as `sweep.max_weights_gb` allows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cnnexp.config import RunConfig
from cnnexp.core.text import pluralize, short_number
from cnnexp.models.layers import LayerSpec
from cnnexp.models.spec import specify_network
from cnnexp.nn.tying import norm_shape
from cnnexp.sweep.cost import ITEMSIZE
from cnnexp.sweep.points import SweepPoint

GIGABYTE = 10**9
INDEX_BYTES = 4  # of a connection that is drawn at random


@dataclass(frozen=True, kw_only=True)
class KeptWeights:
    """The runs of a sweep that store their weights.

    Attributes:
        sizes: bytes of the weights, by the ids of the runs that store them.
        refused: bytes of the weights that would exceed the limit, by the ids of their runs.
        limit_gb: `sweep.max_weights_gb`.
    """

    sizes: Mapping[str, int]
    refused: Mapping[str, int]
    limit_gb: float

    def describe(self) -> str:
        """Say in one line how many runs store their weights, and their size."""
        runs = len(self.sizes) + len(self.refused)
        if not runs:
            return "no weights are stored (train.keep=none)"
        line = f"weights of {len(self.sizes):,} of {pluralize(runs, 'run')} are stored, "
        line += f"{short_number(sum(self.sizes.values()))}B"
        return f"{line}; {self.describe_refused()}" if self.refused else line

    def describe_refused(self) -> str:
        """Say in one line how many runs do not store their weights because of the limit."""
        needed = sum(self.sizes.values()) + sum(self.refused.values())
        number = pluralize(len(self.refused), "run does", "runs do")
        return (
            f"{number} not store weights: those of all runs take {short_number(needed)}B, "
            f"more than sweep.max_weights_gb={self.limit_gb:g} allows"
        )


def choose_kept(runs: Mapping[str, RunConfig]) -> KeptWeights:
    """Choose the runs that store their weights: those with the smallest seeds, until the limit is reached.

    Args:
        runs: of the sweep by their ids.
    """
    limit_gb = next(iter(runs.values())).sweep.max_weights_gb if runs else 0.0
    sizes: dict[str, int] = {}
    refused: dict[str, int] = {}
    total = 0
    for run_id, run in sorted(runs.items(), key=lambda item: item[1].seed):  # a stable sort
        if run.train.keep == "none":
            continue
        total += (size := weights_bytes(run))
        (refused if total > limit_gb * GIGABYTE else sizes)[run_id] = size
    return KeptWeights(sizes=sizes, refused=refused, limit_gb=limit_gb)


def limit_weights(points: Sequence[SweepPoint]) -> tuple[list[SweepPoint], KeptWeights]:
    """Set `train.keep=none` in the runs that do not store their weights because of the limit.

    Returns:
        The points, and which of them store their weights.
    """
    kept = choose_kept({point.config.run_id: point.config for point in points})
    return [_drop_weights(p) if p.config.run_id in kept.refused else p for p in points], kept


def weights_bytes(config: RunConfig) -> int:
    """Compute the bytes that the weights of a run take on disk, without the header of the file."""
    return sum(_layer_bytes(layer) for layer in specify_network(config))


def _layer_bytes(layer: LayerSpec) -> int:
    averages = 2 * math.prod(norm_shape(layer.geometry, layer.norm_tying)) if layer.norm == "batch" else 0
    wired = layer.geometry.connectivity == "random" and layer.tying.kind != "dense"
    indices = layer.geometry.positions * math.prod(layer.geometry.kernel_size) if wired else 0
    return (layer.params + averages) * ITEMSIZE[layer.param_dtype] + indices * INDEX_BYTES


def _drop_weights(point: SweepPoint) -> SweepPoint:
    train = point.config.train.model_copy(update={"keep": "none"})
    return replace(point, config=point.config.model_copy(update={"train": train}))
