"""What a run ends with."""

from typing import Any

from cnnexp.config import RunConfig
from cnnexp.config.data import corruption_summary
from cnnexp.models.spec import matching_of, spec_of, total
from cnnexp.sweep.provenance import product_precision, provenance
from cnnexp.sweep.stacks import run_flops
from cnnexp.training.schedule import duration_of


def summary_of(
    config: RunConfig, last: dict[str, int | float], *, status: str, seconds: float
) -> dict[str, Any]:
    """The last evaluation, the counts and what made them; `seconds` is the run's share of its stack's."""
    layers, made_by = spec_of(config), provenance()
    platform = made_by["device_kind"].partition(" ")[0]
    metrics = {key: value for key, value in last.items() if "/" in key}
    return {
        "run_id": config.run_id,
        "status": status,
        "experiment": config.experiment,
        "seed": config.seed,
        "params/total": total(layers, "params"),
        **{f"params/{layer.name}": layer.counts.params for layer in layers},
        "macs": total(layers, "macs"),
        **matching_of(config),
        **corruption_summary(config.data),
        "connections": total(layers, "connections"),
        **metrics,
        "steps": last["step"],
        "epochs": last["epoch"],
        "wall_seconds": seconds,
        "flops": run_flops(config) * last["step"] / duration_of(config).steps,
        "product_precision": product_precision(
            config.model.precision, config.model.dtype or config.model.param_dtype, platform
        ),
        **made_by,
    }
