"""Which runs the commands of a sweep asked for, so that others can tell how many have not started yet."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from cnnexp.store.files import encode_json, is_name, read_json, write_once

PLANNED = "planned"  # the folder of the files


def record_planned(folder: Path, seed_set: str, runs: Collection[str]) -> None:
    """Store which runs a command asks for; the same command again changes nothing.

    Args:
        folder: The folder of the sweep.
        seed_set: The set of seeds of the runs, see `seeds` in the configuration.
        runs: The ids of the runs.
    """
    content = encode_json({"seeds": seed_set, "runs": sorted(runs)})
    write_once(folder / PLANNED / f"{hashlib.sha256(content).hexdigest()[:12]}.json", content)


def read_planned(folder: Path) -> dict[str, str]:
    """Read the set of seeds of each planned run by its id; files that were edited wrongly are left out."""
    planned: dict[str, str] = {}
    for path in sorted((folder / PLANNED).glob("*.json")):
        values = read_json(path)
        runs, seed_set = values.get("runs"), values.get("seeds")
        if isinstance(runs, list) and isinstance(seed_set, str):
            planned |= {run_id: seed_set for run_id in runs if is_name(run_id)}
    return planned
