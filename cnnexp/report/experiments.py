"""Experiments: the question, claims and figures of a sweep, loaded by name from a folder `experiments`."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnexp.analysis.claims import Claim
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import packaged_folder
from cnnexp.plots.figures import Drawing

NO_EXPERIMENT = "default"  # the value of the key `experiment` unless a sweep names one
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the author of a sweep adds to its report: a question, claims and figures.

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


def load_experiment(name: str, results: Path | None = None) -> Experiment:
    """Load the `EXPERIMENT` of `NAME.py` from the folder `experiments` of cnnexp or of the working folder.

    The name may come from results that somebody else made. Therefore it must be a Python name, only these two
    folders are searched, and a file inside the results is never executed.

    Args:
        name: the name of the experiment.
        results: the folder of all results.

    Returns:
        The experiment; one without claims, whose `missing` says why, where there is no such file.

    Raises:
        UsageError: the file defines no `EXPERIMENT`.
    """
    if name == NO_EXPERIMENT:
        return Experiment()
    if not NAME.fullmatch(name):
        return Experiment(missing=f"the experiment {name!r} is not a name of letters, digits and _")
    folders, exclusion = _search_folders(results)
    files = (folder / f"{name}.py" for folder in folders)
    path = next((file for file in files if file.is_file() and not _lies_in(file, results)), None)
    if path is None:
        return Experiment(
            missing=f"there is no file {name}.py in {' or '.join(map(str, folders))}{exclusion}"
        )
    spec = importlib.util.spec_from_file_location(f"cnnexp_experiment_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{path}: defines no EXPERIMENT of the class {Experiment.__module__}.Experiment")
    return experiment


def _search_folders(results: Path | None) -> tuple[list[Path], str]:
    """List the folders in which experiments are searched for, and explain why one is excluded, if so."""
    packaged, local = packaged_folder("experiments"), Path("experiments").resolve()
    if _lies_in(local, results):
        return [packaged], f"; {local} lies inside the results, which are never executed"
    return list(dict.fromkeys([packaged, local])), ""


def _lies_in(path: Path, results: Path | None) -> bool:
    return results is not None and path.resolve().is_relative_to(results.resolve())
