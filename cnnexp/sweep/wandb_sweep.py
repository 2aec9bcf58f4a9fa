"""`cnnexp wandb-sweep`: a Hydra sweep as a sweep of W&B, carried out by its agents.

An agent starts `cnnexp run` for each of the sweep's points and tells the process about it by its
environment; `agent_overrides` turns that back into Hydra's overrides. Runs are the same as those of the
Hydra sweep, in the same store.
"""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from cnnexp.errors import UsageError
from cnnexp.sweep.execute import SweepFailed
from cnnexp.sweep.jobs import Job
from cnnexp.tracking.target import resolve_mode

METRIC = {"name": "validation/accuracy.last", "goal": "maximize"}


def start_wandb_sweep(jobs: Sequence[Job], method: str, agents: int) -> str:
    """Make the sweep at W&B, start agents on this machine and wait for them; returns the sweep's address.

    Args:
        jobs: of the Hydra sweep; overrides that differ between them become parameters.
        method: grid, random or bayes.
        agents: processes that carry it out, one run at a time each.

    Raises:
        UsageError: the jobs are not all combinations of their values, or bayes has nothing to choose by.
        SweepFailed: an agent failed.
    """
    import wandb

    first = jobs[0].config
    resolve_mode("online")
    if method == "bayes" and not first.data.validation_size:
        raise UsageError("--method bayes: chooses by validation images; set data.validation_size")
    parameters, fixed = parameters_of([job.overrides for job in jobs])
    if method == "grid" and len(jobs) != _combinations(parameters):
        raise UsageError("--method grid: the sweep is not all combinations of its values")
    command = ["${env}", sys.executable, "-m", "cnnexp", "run", *fixed, f"name={first.name}"]
    specification = {"name": first.name, "method": method, "parameters": parameters, "command": command}
    if method == "bayes":
        specification["metric"] = METRIC
    tracking = first.tracking
    sweep_id = wandb.sweep(specification, entity=tracking.entity, project=tracking.project)
    where = "/".join(part for part in (tracking.entity, tracking.project, sweep_id) if part)
    agent = [sys.executable, "-m", "wandb", "agent", where]
    if method != "grid":
        agent[4:4] = ["--count", str(-(-len(jobs) // agents))]
    running = [subprocess.Popen(agent) for _ in range(agents)]
    failed = sum(process.wait() != 0 for process in running)
    if failed:
        raise SweepFailed(f"{failed} of {agents} agents failed; start another with: wandb agent {where}")
    return where


def parameters_of(jobs: Sequence[Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """W&B's parameters for the keys in which jobs differ, and the overrides that they share."""
    parser = OverridesParser.create()
    values: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for text in job:
            override = parser.parse_override(text)
            values.setdefault(override.key_or_group, {})[text] = override.value()
    parameters = {key: {"values": list(found.values())} for key, found in values.items() if len(found) > 1}
    shared = [text for text in jobs[0] if parser.parse_override(text).key_or_group not in parameters]
    return parameters, [text for text in shared if not text.startswith("hydra.")]


def agent_overrides(arguments: Sequence[str]) -> list[str]:
    """The overrides of a run: as typed, with the parameters of the agent that started it, if one did."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not os.environ.get("WANDB_SWEEP_ID") or not path:
        return list(arguments)
    given = yaml.safe_load(Path(path).read_text())
    chosen = {key: entry["value"] for key, entry in given.items() if isinstance(entry, dict)}
    # W&B's own `${args}` says the same, as --key=value or key=value, without Hydra's quotes.
    typed = [text for text in arguments if text.lstrip("-").partition("=")[0] not in chosen]
    return [*typed, *(f"{key}={_text(value)}" for key, value in chosen.items())]


def _text(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if value and value.replace("_", "").isalnum() else f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def _combinations(parameters: dict[str, Any]) -> int:
    return math.prod(len(parameter["values"]) for parameter in parameters.values())
