"""The summary of a run: its last evaluation, its counts, and the versions and device that produced it."""

import functools
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import cnnexp
from cnnexp.config import SECTIONS, RunConfig
from cnnexp.config.data import corruption_summary
from cnnexp.config.model import CustomModel
from cnnexp.core.machine import packaged_folder
from cnnexp.core.revision import git_revision
from cnnexp.core.user_code import NO_EXPERIMENT, find_experiment_file, list_imported_files
from cnnexp.models.spec import describe_matching, specify_network, total_count
from cnnexp.sweep.points import COMMAND_LINE
from cnnexp.training.schedule import estimate_flops, resolve_duration

GROUPS = (*SECTIONS, "experiment", "experiment_size", "size")
PACKAGES = ("jax", "flax", "optax", "numpy")


@functools.cache
def provenance() -> dict[str, str]:
    """Return versions, device and revision, which all runs of a process have in common, by summary key."""
    device = jax.devices()[0]
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "version/cnnexp": cnnexp.__version__,  # has no metadata in a checkout that is not installed
        **{f"version/{package}": version(package) for package in PACKAGES},
        "version/python": platform.python_version(),
        "device": f"{len(jax.devices())} x {device.platform} ({_device_model(device)})",
        "device_kind": f"{device.platform} ({_device_model(device)})",
        **({"xla_flags": flags} if flags else {}),
        "git_revision": git_revision(),
    }


def list_user_files(experiment: str) -> list[Path]:
    """List the files that the user has written for a sweep whose runs have been checked.

    These are the imported ones (networks, data, optimisers, losses and what they import), the module of the
    experiment, and the user's configuration files.

    Args:
        experiment: the name of the experiment.
    """
    files = list_imported_files()
    folder = COMMAND_LINE.get().config_folder
    is_named = experiment != NO_EXPERIMENT
    module = find_experiment_file(experiment, config_folder=folder) if is_named else None
    if module is not None and not module.is_relative_to(packaged_folder("experiments")):
        files.append(module)
    if folder:
        files += [*folder.glob("*.yaml"), *(f for group in GROUPS for f in (folder / group).rglob("*.yaml"))]
    return list(dict.fromkeys(file.resolve() for file in files))


def product_precision(precision: str, dtype: str, platform: str) -> str:
    """Name the precision at which the matrix products of a run are computed on a kind of device.

    CPUs multiply at the precision of the operands whatever the setting. For float32 operands, GPUs round to
    TensorFloat-32 unless the setting is "highest", and TPUs use one, three or six passes in bfloat16.

    Args:
        precision: the setting, as in `model.precision`.
        dtype: of the operands.
        platform: JAX's name for the kind of device.

    References:
        `jax.lax.Precision` and `jax.default_matmul_precision`.
    """
    if dtype != "float32" or platform == "cpu" or precision in ("float32", "highest"):
        return dtype
    if platform == "tpu":
        return "bfloat16_3x" if precision in ("high", "tensorfloat32") else "bfloat16"
    return "bfloat16" if precision == "bfloat16" else "tensorfloat32"


def _product_dtype(config: RunConfig) -> str:
    model = config.model
    return "float32" if isinstance(model, CustomModel) else model.dtype or model.param_dtype


def _device_model(device: Any) -> str:
    """Return the model of a device, such as "NVIDIA H100"; JAX calls every CPU "cpu"."""
    if device.platform != "cpu":
        return device.device_kind
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def summary_of(
    config: RunConfig, last: dict[str, int | float], *, status: str, seconds: float
) -> dict[str, Any]:
    """Build the summary of a run.

    Args:
        config: of the run.
        last: its last row of metrics.
        status: `finished` or `diverged`.
        seconds: wall time of its stack divided by the number of runs.
    """
    layers, origin = specify_network(config), provenance()
    platform_name = origin["device_kind"].partition(" ")[0]
    metrics = {key: value for key, value in last.items() if "/" in key}
    return {
        "run_id": config.run_id,
        "status": status,
        "experiment": config.experiment,
        "seed": config.seed,
        "params/total": total_count(layers, "params"),
        **{f"params/{layer.name}": layer.counts.params for layer in layers},
        "macs": total_count(layers, "macs"),
        **describe_matching(config),
        **corruption_summary(config.data),
        "connections": total_count(layers, "connections"),
        **metrics,
        "steps": last["step"],
        "epochs": last["epoch"],
        "wall_seconds": seconds,
        "flops": estimate_flops(config) * last["step"] / resolve_duration(config).steps,
        "product_precision": product_precision(config.model.precision, _product_dtype(config), platform_name),
        **origin,
    }
