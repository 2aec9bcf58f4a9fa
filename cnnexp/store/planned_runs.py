"""The runs that the commands of a sweep have asked for, whether or not their training has begun.

Each command adds a file to the folder `planned` of its sweep, with the configurations by dotted keys: those
that all of its runs have in common once, and the others by the ids of the runs. From these files and the
store, every process knows which keys vary in the whole sweep, and how many runs have not started yet.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cnnexp.config import RunConfig
from cnnexp.store.files import encode_json, is_name, read_json, replace_unprintable, write_once
from cnnexp.store.runs import CONFIG, list_run_folders, read_config, sweep_folder

PLANNED = "planned"  # the folder of the files
GROUPS = ("model", "data", "optim", "train")  # of configuration keys, in the order in which people read them
SECTIONS = ("seed", "seeds", *GROUPS)


def flatten_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration by dotted keys; a list becomes its text.

    >>> flatten_config({"model": {"name": "simple_cnn", "features": [4, 8]}, "seed": 0})
    {'model.name': 'simple_cnn', 'model.features': '[4, 8]', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, list) else value
    return flat


def flatten_groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seed of a configuration, its set of seeds, and the keys that tell cells apart, dotted."""
    return flatten_config({section: config[section] for section in SECTIONS if section in config})


def record_planned_runs(runs: Mapping[str, RunConfig]) -> None:
    """Store which runs a command asks for; the same command again changes nothing.

    Args:
        runs: Runs of one sweep by their ids.
    """
    configs = {run_id: flatten_groups(run.model_dump(include=set(SECTIONS))) for run_id, run in runs.items()}
    content = encode_json(_compress(dict(sorted(configs.items()))))
    folder = sweep_folder(next(iter(runs.values()))) / PLANNED
    write_once(folder / f"{hashlib.sha256(content).hexdigest()[:12]}.json", content)


def read_planned_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations of the runs that commands asked for, by dotted keys and run ids.

    Files that were edited wrongly are left out.

    Args:
        folder: The sweep's folder.
    """
    planned: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / PLANNED).glob("*.json")):
        planned |= _read(path)
    return planned


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations of the runs that a sweep has or was asked for, by dotted keys and run ids.

    Args:
        folder: The sweep's folder.
    """
    stored = {run.name: read_config(run / CONFIG) for run in list_run_folders(folder)}
    configs = {run_id: flatten_groups(config) for run_id, config in stored.items() if config}
    return read_planned_runs(folder) | configs


def _compress(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    common = _intersect(runs.values())
    varying = {
        run_id: {key: value for key, value in run.items() if key not in common}
        for run_id, run in runs.items()
    }
    return {"common": common, "runs": varying}


def _intersect(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys and values that all runs have."""
    common: dict[str, Any] | None = None
    for run in runs:
        common = {
            key: value
            for key, value in (run if common is None else common).items()
            if key in run and repr(run[key]) == repr(value)
        }
    return common or {}


def _read(file: Path) -> dict[str, dict[str, Any]]:
    content = replace_unprintable(read_json(file))
    common, runs = content.get("common"), content.get("runs")
    if not isinstance(common, dict) or not isinstance(runs, dict):
        return {}
    return {
        run_id: common | keys for run_id, keys in runs.items() if is_name(run_id) and isinstance(keys, dict)
    }
