"""The layers of a network as rows of a table: shapes, counts and memory."""

from typing import Any

from cnnexp.config import RunConfig
from cnnexp.models.spec import LayerSpec, NetworkSpec

COLUMNS = [
    "layer",
    "output",
    "tying",
    "params",
    "weights",
    "connections",
    "sparsity",
    "sharing",
    "MACs",
    "memory",
]

COUNT_COLUMNS = ("params", "weights", "connections", "MACs", "memory")


def tabulate_layers(layers: NetworkSpec, config: RunConfig) -> list[dict[str, Any]]:
    """Tabulate the layers of a network, and then their total.

    Args:
        layers: the network.
        config: gives the number of values that the optimiser stores per weight.

    Returns:
        The values of `COLUMNS` for each row; memory is in bytes.
    """
    rows = [_row(layer, config) for layer in layers]
    pairs = sum(layer.geometry.in_units * layer.geometry.out_units for layer in layers)
    sums = {column: sum(row[column] for row in rows) for column in COUNT_COLUMNS}
    rates = {
        "sparsity": 1 - sums["connections"] / pairs,
        "sharing": sums["connections"] / sums["weights"],
    }
    rows.append({"layer": "total", "output": "", "tying": ""} | sums | rates)
    return rows


def _row(layer: LayerSpec, config: RunConfig) -> dict[str, Any]:
    counts, geometry = layer.counts, layer.geometry
    flat = geometry.covers_image or layer.tying.kind == "dense"
    tying = "dense" if flat else f"{layer.tying} {geometry.kernel_size[0]}x{geometry.kernel_size[1]}"
    if geometry.connectivity == "random" and not flat:
        tying += " random"
    return {
        "layer": layer.name,
        "output": "x".join(map(str, geometry.out_shape))
        if geometry.positions > 1
        else str(geometry.features),
        "tying": tying,
        "params": counts.params,
        "weights": counts.weights,
        "connections": counts.connections,
        "sparsity": counts.sparsity,
        "sharing": counts.sharing,
        "MACs": counts.macs,
        "memory": _memory(layer, config),
    }


def _memory(layer: LayerSpec, config: RunConfig) -> int:
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[layer.param_dtype]
    return layer.counts.params * (itemsize + 4 * config.optim.slots)  # optimisers keep float32
