"""Experiments: the question, claims and figures of a sweep, loaded by name from a folder `experiments`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnexp.analysis.claims import Claim
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import packaged_folder
from cnnexp.core.user_code import execute_file
from cnnexp.plots.figures import Drawing

NO_EXPERIMENT = "default"  # the value of the key `experiment` unless a sweep names one
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The question, claims and figures that the author of a sweep adds to its report.

    Attributes:
        question: the title of the report.
        claims: the claims that it judges.
        figures: its figures by their file names.
        missing: why the experiment of a sweep could not be loaded, in which case the report has no claims;
            empty otherwise.
    """

    question: str = "What did this sweep show?"
    claims: Sequence[Claim] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    missing: str = ""


def load_experiment(name: str, results: Path | None = None, config_folder: Path | None = None) -> Experiment:
    """Load the `EXPERIMENT` of `NAME.py` from the folder `experiments` of cnnexp or of the working folder.

    The name may come from results that somebody else made. Therefore it must be a Python name, only these
    folders are searched, and a file inside the results is never executed.

    Args:
        name: the name of the experiment.
        results: the folder of all results.
        config_folder: the user's folder of configuration files, if it is not `conf` in the working folder;
            the folder `experiments` beside it is searched, too.

    Returns:
        The experiment; one without claims, whose `missing` says why, where there is no such file.

    Raises:
        UsageError: the file defines no `EXPERIMENT`, or raises.
    """
    if name == NO_EXPERIMENT:
        return Experiment()
    if not NAME.fullmatch(name):
        return Experiment(missing=f"the experiment {name!r} is not a name of letters, digits and _")
    path = find_experiment_file(name, results, config_folder)
    if path is None:
        folders, exclusion = _search_folders(results, config_folder)
        return Experiment(
            missing=f"there is no file {name}.py in {' or '.join(map(str, folders))}{exclusion}"
        )
    experiment = getattr(execute_file(path), "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{path}: defines no EXPERIMENT of the class {Experiment.__module__}.Experiment")
    return experiment


def find_experiment_file(
    name: str, results: Path | None = None, config_folder: Path | None = None
) -> Path | None:
    """Return the file of an experiment, see `load_experiment`, or None if there is none."""
    folders, _ = _search_folders(results, config_folder)
    files = (folder / f"{name}.py" for folder in folders)
    return next((file for file in files if file.is_file() and not _lies_in(file, results)), None)


def _search_folders(results: Path | None, config_folder: Path | None) -> tuple[list[Path], str]:
    """List the folders in which experiments are searched for, and explain why one is excluded, if so."""
    beside = [config_folder.resolve().parent / "experiments"] if config_folder else []
    local = [*beside, Path("experiments").resolve()]
    excluded = [folder for folder in local if _lies_in(folder, results)]
    why = "".join(f"; {folder} lies inside the results, which are never executed" for folder in excluded)
    searched = [folder for folder in local if folder not in excluded]
    return list(dict.fromkeys([packaged_folder("experiments"), *searched])), why


def _lies_in(path: Path, results: Path | None) -> bool:
    return results is not None and path.resolve().is_relative_to(results.resolve())
