"""`cnnexp wandb-sweep`: a Hydra sweep as a sweep of W&B, carried out by its agents.

An agent starts `cnnexp run` for each sweep point and passes the point in the environment of the process;
`agent_overrides` turns it back into Hydra's overrides. The runs are those of the Hydra sweep, in the same
store. If the points are not all combinations of their values, as in a sweep with parts, W&B gets a single
parameter, `job`, each of whose values is the overrides of one point.
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

from cnnexp.core.errors import SweepFailed, UsageError, format_value
from cnnexp.core.text import pluralize
from cnnexp.data.shapes import infer_shape
from cnnexp.sweep.claims import prepare_freeze
from cnnexp.sweep.overrides import quote_tyings
from cnnexp.sweep.points import COMMAND_LINE, SweepPoint
from cnnexp.sweep.validate import check_configs
from cnnexp.tracking.target import NAME_LIMIT, hide_credentials, resolve_mode, shorten

POINT_PARAMETER = "job"  # at W&B: the overrides of one sweep point
# An agent's run is one point, whatever the sweep of an experiment would vary.
ONE_POINT = ("hydra.sweeper.params=null", "hydra.sweeper.parts=null")


def start_wandb_sweep(points: Sequence[SweepPoint], method: str, agents: int) -> str:
    """Create the sweep at W&B, start agents on this machine and wait for them.

    Args:
        points: the points of the Hydra sweep; overrides in which they differ become parameters.
        method: how W&B chooses the next point: grid, random or bayes.
        agents: the number of agents; each trains one run at a time.

    Returns:
        The sweep's address: ENTITY/PROJECT/ID.

    Raises:
        UsageError: there is no key, a run is impossible, or bayes has nothing to choose by.
        SweepFailed: an agent failed.
    """
    import wandb

    first = points[0].config
    if first.tune.rungs > 1:
        raise UsageError(f"tune.rungs={first.tune.rungs}: must be 1, as W&B's agents train each run alone")
    if first.tune.extend:
        message = "W&B's agents add no values; the same command with `cnnexp run` adds them afterwards"
        print(f"cnnexp: tune.extend={first.tune.extend}: {message}", file=sys.stderr)
    resolve_mode("online")  # raises if no key is configured
    hide_credentials()
    check_configs([point.config for point in points])
    if method == "bayes" and not first.data.validation_size:
        raise UsageError("--method bayes: chooses by validation accuracy; set data.validation_size")
    if agents > len(points):
        raise UsageError(f"--agents {agents}: must be at most {len(points)}, the number of runs")
    tracking = first.tracking
    specification = _specify_wandb_sweep(points, method)
    prepare_freeze(points)()  # each agent's command knows only one run
    sweep_id = wandb.sweep(specification, entity=tracking.entity, project=tracking.project)
    address = "/".join(part for part in (tracking.entity, tracking.project, sweep_id) if part)
    # A grid ends by itself. For the other methods, the agents share as many runs as the sweep has points.
    run_limit = [] if method == "grid" else ["--count", str(math.ceil(len(points) / agents))]
    # -P: a `wandb.py` of this folder is not imported.
    command = [sys.executable, "-P", "-m", "wandb", "agent", *run_limit, address]
    processes = [subprocess.Popen(command) for _ in range(agents)]
    failed = sum(process.wait() != 0 for process in processes)
    if failed:
        raise SweepFailed(
            f"{failed} of {pluralize(agents, 'agent')} failed; to start another, run: wandb agent {address}"
        )
    return address


def _specify_wandb_sweep(points: Sequence[SweepPoint], method: str) -> dict[str, Any]:
    """Return the specification that `wandb.sweep` takes."""
    name = points[0].config.name
    parameters, fixed = split_overrides([point.overrides for point in points])
    run = [sys.executable, "-m", "cnnexp", "run"]
    specification = {
        "name": shorten(name, NAME_LIMIT),
        "method": method,
        "parameters": parameters,
        "command": ["${env}", *run, *COMMAND_LINE.get().context, *fixed, f"name={name}"],
    }
    name = "average_precision" if infer_shape(points[0].config.data).multi_label else "accuracy"
    metric = {"name": f"validation/{name}.last", "goal": "maximize"}
    return specification | ({"metric": metric} if method == "bayes" else {})


def split_overrides(points: Sequence[Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """Split the overrides of sweep points into those that differ and those that all points have.

    Args:
        points: the overrides of each point.

    Returns:
        The differing ones as parameters of a W&B sweep: one for each key if the points are all combinations
        of the keys' values, else the single parameter `POINT_PARAMETER`. Then the common ones.
    """
    parse = lru_cache(maxsize=None)(OverridesParser.create().parse_override)
    by_key = [
        {parse(text).key_or_group: text for text in point if not text.startswith("hydra.")}
        for point in points
    ]
    common = {key: text for key, text in by_key[0].items() if all(p.get(key) == text for p in by_key)}
    distinct = list(dict.fromkeys(tuple(t for key, t in p.items() if key not in common) for p in by_key))
    values: dict[str, dict[str, Any]] = {}  # of each key, by the override that sets it
    for text in (text for point in distinct for text in point):
        values.setdefault(parse(text).key_or_group, {})[text] = parse(text).value()
    only_changes = all(parse(text).type == OverrideType.CHANGE for point in distinct for text in point)
    all_set_each_key = all(len(point) == len(values) for point in distinct)
    is_grid = all_set_each_key and len(distinct) == math.prod(map(len, values.values()))
    if values and only_changes and is_grid:
        parameters = {key: {"values": list(of_key.values())} for key, of_key in values.items()}
    else:
        parameters = {POINT_PARAMETER: {"values": [shlex.join(point) for point in distinct]}}
    return parameters, list(common.values())


def agent_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides of a command, with the parameters of the W&B agent that started it, if one did.

    Args:
        arguments: the overrides as they were typed.

    Raises:
        UsageError: an agent's process is asked for several runs, which would all be one run at W&B.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not os.environ.get("WANDB_SWEEP_ID") or not path:
        return list(arguments)
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    parameters = {key: entry["value"] for key, entry in entries.items() if isinstance(entry, dict)}
    # W&B's own `${args}` repeats the parameters, as --key=value or key=value, without Hydra's quotes.
    typed = [text for text in arguments if text.lstrip("-").partition("=")[0] not in parameters]
    _refuse_several_runs([text for text in typed if not text.startswith("-")])
    point = shlex.split(parameters.pop(POINT_PARAMETER, ""))
    return [*typed, *point, *(f"{key}={_hydra_text(value)}" for key, value in parameters.items()), *ONE_POINT]


def _refuse_several_runs(overrides: Sequence[str]) -> None:
    with suppress(OverrideParseException):  # Hydra reports it later
        for override in OverridesParser.create().parse_overrides(quote_tyings(overrides)):
            if override.is_sweep_override():
                raise UsageError(f"{override.input_line}: must be one value under a W&B agent")


def _hydra_text(value: Any) -> str:
    """Write a value as Hydra reads it."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return value if value and value.replace("_", "").isalnum() else f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_hydra_text, value))}]"
    return format_value(value)
