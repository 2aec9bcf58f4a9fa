"""Tables of what a sweep cost, by the purpose of its runs, and of its data sets and their licences."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cnnexp.config.data import describe_licence
from cnnexp.core.text import pluralize, short_number
from cnnexp.report.report import Report
from cnnexp.store.files import read_json
from cnnexp.store.runs import STATUS, StoredRun
from cnnexp.store.usage import read_usage

SECONDS_PER_HOUR, JOULES_PER_KWH = 3600, 3.6e6
DEVICES = re.compile(r"(\d+) x ")  # the beginning of a description such as "2 x cpu (AMD EPYC)"


def tabulate_compute(report: Report) -> pd.DataFrame:
    """Tabulate runs, floating-point operations and device hours, by the purpose of the runs.

    Args:
        report: The contents of the report.

    Returns:
        One row per purpose, and their total: the runs of the tables, those that only served to choose
        hyperparameters or have other seeds, and those without a result that counts.
    """
    chosen = set(report.table["run_id"])
    finished = [run for run in report.runs if run.status == "finished"]
    kinds = {
        "in the tables": [run for run in finished if run.run_id in chosen],
        "tuning, and other seeds": [run for run in finished if run.run_id not in chosen],
        "stopped, diverged, failed or not finished": [run for run in report.runs if run.status != "finished"],
    }
    rows = [_describe_cost(name, runs) for name, runs in (kinds | {"total": report.runs}).items()]
    return pd.DataFrame(rows)


def _describe_cost(name: str, runs: Sequence[StoredRun]) -> dict[str, str]:
    training = sum(map(count_training_flops, runs))
    total = sum(run.summary.get("flops") or 0.0 for run in runs)
    ended = sum(count_training_flops(run) for run in runs if run.summary.get("flops"))
    return {
        "runs": name,
        "number": f"{len(runs):,}",
        "FLOPs of training": f"{training:.2e}",
        "FLOPs of evaluation": f"{max(0.0, total - ended):.2e}",
        "device hours": f"{measure_device_hours(runs):.3g}",
    }


def count_training_flops(run: StoredRun) -> float:
    """Count the floating-point operations of the training steps of a run, up to its last evaluation.

    Each MAC is two operations, and a training step costs as much as three forward passes.
    """
    return 2.0 * max((row.get("macs", 0) for row in run.history), default=0)


def measure_device_hours(runs: Sequence[StoredRun]) -> float:
    """Measure the hours for which runs occupied devices: wall time multiplied by the number of devices.

    A run without a summary has not stored its wall time. Such runs may have been trained side by side, so the
    union of their times between start and last write is counted.
    """
    seconds, spans, devices = 0.0, [], 1
    for run in runs:
        match = DEVICES.match(str(run.summary.get("device", "")))
        devices = int(match[1]) if match else devices
        if run.summary:
            seconds += devices * (run.summary.get("wall_seconds") or 0.0)
            continue
        status = read_json(run.folder / STATUS)
        if isinstance(status.get("started"), int | float) and isinstance(status.get("updated"), int | float):
            spans.append((status["started"], status["updated"]))
    end = 0.0
    for start, updated in sorted(spans):
        seconds += devices * max(0.0, updated - max(start, end))
        end = max(end, updated)
    return seconds / SECONDS_PER_HOUR


def describe_compute(report: Report) -> str:
    """Explain how the numbers of `tabulate_compute` were computed."""
    devices = " and ".join(sorted(map(str, report.table["device"].unique())))
    number = pluralize(len(report.runs), "run")
    return (
        f"All {number} of this sweep are included, on {devices}. FLOPs are computed, not measured: two per "
        "MAC, three passes per training step and one per evaluation; normalisation, activations and the "
        "optimiser are left out. Device hours are wall time multiplied by the number of devices (on CPU, "
        "each core is a device), compilation included. Runs whose folders were removed are not counted. "
        f"{describe_usage(report.runs[0].folder.parent)}"
    )


def describe_usage(folder: Path) -> str:
    """Describe the peak memory and the energy of a sweep, in sentences.

    Args:
        folder: The folder of the sweep.
    """
    usages = [usage for usage in read_usage(folder) if usage.seed_set != "pilot"]
    if not usages:
        return "Energy and peak memory were not measured."
    peak = f"{short_number(max(usage.peak_bytes for usage in usages))}B"
    devices = [usage.peak_device_bytes for usage in usages if usage.peak_device_bytes]
    memory = f"{peak} of a process"
    if devices:
        memory += f" and {short_number(max(devices))}B of a device"
    energies = [
        f"{sum(joules) / JOULES_PER_KWH:.3g} kWh by the counters of {name}"
        for name, joules in (
            ("CPUs", [usage.cpu_joules for usage in usages if usage.cpu_joules is not None]),
            ("GPUs", [usage.gpu_joules for usage in usages if usage.gpu_joules is not None]),
        )
        if joules
    ]
    energy = f"Energy: {' and '.join(energies)}, which count all that these machines did meanwhile."
    counted = pluralize(len(usages), "process", "processes")
    return (
        f"Peak memory: {memory}, by {counted} that ended in an orderly way. "
        f"{energy if energies else 'Energy was not measured: no counter of these machines can be read.'}"
    )


def tabulate_data(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the data sets of a sweep with their licences, and the checksums that runs have stored.

    Args:
        table: One row per finished run.
    """
    rows = []
    names = table["data.name"] if "data.name" in table else pd.Series("unknown", index=table.index)
    for name, runs in table.groupby(names.astype(str).to_numpy()):
        checksums = runs["data.checksum"].dropna().astype(str).unique() if "data.checksum" in runs else ()
        rows.append(
            {
                "data": str(name),
                "licence": describe_licence(str(name)),
                "checksum of the images": ", ".join(sorted(checksums)),
            }
        )
    return pd.DataFrame(rows)
