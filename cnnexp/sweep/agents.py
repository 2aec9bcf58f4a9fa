"""`cnnexp wandb-sweep`: a Hydra sweep as a sweep of W&B, carried out by its agents.

An agent starts `cnnexp run` for each of the sweep's points and tells the process about it by its
environment; `agent_overrides` turns that back into Hydra's overrides. Runs are the same as those of the
Hydra sweep, in the same store. Where a sweep is not all combinations of its values, as those with parts,
W&B gets one parameter, `job`, whose values are the overrides of one run each.
"""

import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import OverrideParseException

from cnnexp.core.errors import SweepFailed, UsageError
from cnnexp.sweep.compose import quote_tyings
from cnnexp.sweep.points import COMMAND_LINE, Job
from cnnexp.sweep.validate import check_configs
from cnnexp.tracking.target import NAME_LIMIT, hide_credentials, resolve_mode, shorten

JOB = "job"
ALONE = ("hydra.sweeper.params=null", "hydra.sweeper.parts=null")
METRIC = {"name": "validation/accuracy.last", "goal": "maximize"}


def start_wandb_sweep(jobs: Sequence[Job], method: str, agents: int) -> str:
    """Make the sweep at W&B, start agents on this machine and wait for them; returns the sweep's address.

    Args:
        jobs: of the Hydra sweep; overrides that differ between them become parameters.
        method: grid, random or bayes.
        agents: processes that carry it out, one run at a time each.

    Raises:
        UsageError: there is no key, a run is impossible, or bayes has nothing to choose by.
        SweepFailed: an agent failed.
    """
    import wandb

    first = jobs[0].config
    resolve_mode("online")
    hide_credentials()
    check_configs([job.config for job in jobs])
    if method == "bayes" and not first.data.validation_size:
        raise UsageError("--method bayes: needs validation images; set data.validation_size")
    if agents > len(jobs):
        raise UsageError(f"--agents {agents}: must be at most {len(jobs)}, the number of runs")
    parameters, fixed = parameters_of([job.overrides for job in jobs])
    command = [
        "${env}",
        sys.executable,
        "-m",
        "cnnexp",
        "run",
        *COMMAND_LINE.get().context,
        *fixed,
        f"name={first.name}",
    ]
    specification = {
        "name": shorten(first.name, NAME_LIMIT),
        "method": method,
        "parameters": parameters,
        "command": command,
    }
    if method == "bayes":
        specification["metric"] = METRIC
    tracking = first.tracking
    sweep_id = wandb.sweep(specification, entity=tracking.entity, project=tracking.project)
    where = "/".join(part for part in (tracking.entity, tracking.project, sweep_id) if part)
    count = ["--count", str(-(-len(jobs) // agents))] * (method != "grid")
    agent = [sys.executable, "-P", "-m", "wandb", "agent", *count, where]  # not a `wandb.py` of this folder
    running = [subprocess.Popen(agent) for _ in range(agents)]
    failed = sum(process.wait() != 0 for process in running)
    if failed:
        raise SweepFailed(f"{failed} of {agents} agents failed; start another with: wandb agent {where}")
    return where


def parameters_of(jobs: Sequence[Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """Return W&B's parameters for what jobs differ in, and the overrides that all jobs have."""
    parse = lru_cache(maxsize=None)(OverridesParser.create().parse_override)
    own = [{parse(text).key_or_group: text for text in job if not text.startswith("hydra.")} for job in jobs]
    shared = {key: text for key, text in own[0].items() if all(job.get(key) == text for job in own)}
    points = list(dict.fromkeys(tuple(t for key, t in job.items() if key not in shared) for job in own))
    values: dict[str, dict[str, Any]] = {}
    for text in (text for point in points for text in point):
        values.setdefault(parse(text).key_or_group, {})[text] = parse(text).value()
    plain = all(parse(text).type == OverrideType.CHANGE for point in points for text in point)
    every = all(len(point) == len(values) for point in points)
    if values and plain and every and len(points) == math.prod(map(len, values.values())):
        parameters = {key: {"values": list(found.values())} for key, found in values.items()}
    else:
        parameters = {JOB: {"values": [shlex.join(point) for point in points]}}
    return parameters, list(shared.values())


def agent_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides of a run: as typed, with the parameters of the agent that started it, if one did.

    Raises:
        UsageError: an agent's process is asked for several runs, which would all be one run at W&B.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not os.environ.get("WANDB_SWEEP_ID") or not path:
        return list(arguments)
    given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    chosen = {key: entry["value"] for key, entry in given.items() if isinstance(entry, dict)}
    # W&B's own `${args}` says the same, as --key=value or key=value, without Hydra's quotes.
    typed = [text for text in arguments if text.lstrip("-").partition("=")[0] not in chosen]
    _refuse_several([text for text in typed if not text.startswith("-")])
    job = shlex.split(chosen.pop(JOB, ""))
    # What the sweep of an experiment varies is the agent's to choose.
    return [*typed, *job, *(f"{key}={_text(value)}" for key, value in chosen.items()), *ALONE]


def _refuse_several(typed: Sequence[str]) -> None:
    with suppress(OverrideParseException):  # which Hydra then tells
        for override in OverridesParser.create().parse_overrides(quote_tyings(typed)):
            if override.is_sweep_override():
                raise UsageError(f"{override.input_line}: must be one value under a W&B agent")


def _text(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if value and value.replace("_", "").isalnum() else f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))
