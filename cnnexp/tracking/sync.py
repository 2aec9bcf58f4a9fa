"""`cnnexp sync`: what W&B lacks of a sweep, sent from the store by hand at any later time."""

import time
from pathlib import Path

import yaml

from cnnexp.config.sections import Tracking
from cnnexp.errors import UsageError, suggestion
from cnnexp.progress import progress_bar
from cnnexp.store.runs import ENDED, read_run, run_folders
from cnnexp.tracking.mirror import Follower, outage_line, sent_line
from cnnexp.tracking.target import Reachability, Target, resolve_mode
from cnnexp.tracking.wandb_sweep import SweepMirror

FOLLOW_SECONDS = 2.0  # between two looks at the store
AGAIN_SECONDS = 5.0  # after a failure, while following


class NotSent(Exception):
    """Something is left to send; the message says why and what to type."""


def sync(results: Path, name: str | None, *, follow: bool, to: str | None) -> None:
    """Send every run of a sweep, or of all sweeps, that is not where it should be.

    Args:
        results: the folder of sweeps.
        name: of the sweep; None: all of them.
        follow: go on until every run has ended and was sent.
        to: not to the server: to `trackio`, or a folder for W&B's offline files.

    Raises:
        UsageError: there is no such sweep, or no key.
        NotSent: the server is out of reach, or refuses.
    """
    folders = [sweep_folder(results, name)] if name else [results / sweep for sweep in _sweeps(results)]
    for folder in folders:
        offline_dir = Path(to).expanduser().resolve() if to and to != "trackio" else None
        mode = "local" if to == "trackio" else "offline" if to else "online"
        target = target_of_sweep(folder, mode, offline_dir)
        follower, started = Follower(target), time.monotonic()
        while True:
            try:
                _send(folder, follower, whole=not follow or _all_ended(folder))
            except Exception as error:
                if not follow:
                    again = f"cnnexp sync {folder.name}"
                    raise NotSent(f"W&B: {outage_line(error)}; to try again, type: {again}") from None
                print(f"W&B: {outage_line(error)}; trying again", flush=True)
                time.sleep(AGAIN_SECONDS)
                follower = Follower(target)
                continue
            if not follow or _all_ended(folder):
                break
            time.sleep(FOLLOW_SECONDS)
        if follower.sent:
            print(sent_line(target, folder, follower.sent, time.monotonic() - started))
        else:
            print(f"{folder.name}: nothing is missing at {target.address}")


def _send(folder: Path, follower: Follower, *, whole: bool) -> None:
    follower.told([str(run.resolve()) for run in run_folders(folder)])
    server = Reachability()
    with progress_bar("sending runs", len(follower.left)) as advance:
        while follower.left:
            if follower.target.mode == "online" and not server:
                raise ConnectionError(f"{server.host} is out of reach")
            follower.send_one()
            advance(1)
    if whole and follower.target.mode != "local":
        SweepMirror(folder, follower.target).finish()


def sweep_folder(results: Path, name: str) -> Path:
    """The folder of a sweep that has runs.

    Raises:
        UsageError: there is no such sweep.
    """
    there = _sweeps(results)
    if name not in there:
        raise UsageError(f"{name}: no such sweep in {results}; {suggestion(name, there)}")
    return results / name


def target_of_sweep(folder: Path, mode: str, directory: Path | None = None) -> Target:
    """Where the sweep's own configuration says, in another mode perhaps.

    Raises:
        UsageError: online without a key.
    """
    config = yaml.safe_load((run_folders(folder)[0] / "config.yaml").read_text())
    tracking = Tracking.model_validate(config["tracking"])
    where = str(directory) if directory else None
    return Target(mode=resolve_mode(mode), project=tracking.project, entity=tracking.entity, directory=where)


def _sweeps(results: Path) -> list[str]:
    return sorted(path.name for path in results.glob("*") if run_folders(path))


def _all_ended(folder: Path) -> bool:
    return all(read_run(run).status in (*ENDED, "failed") for run in run_folders(folder))
