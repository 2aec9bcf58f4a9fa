"""Experiments: the question, claims and figures of a sweep, loaded by name from a folder `experiments`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnexp.analysis.claims import Claim
from cnnexp.core.errors import UsageError
from cnnexp.core.user_code import (
    NO_EXPERIMENT,
    execute_file,
    find_experiment_file,
    list_experiment_folders,
)
from cnnexp.plots.figures import Drawing

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The question, claims and figures that the author of a sweep adds to its report.

    Attributes:
        question: the title of the report.
        claims: the claims that it judges.
        figures: its figures by their file names.
        metric: the metric that claims and figures are measured by, such as `average_precision`; see
            `choose_metric` for the default.
        missing: why the experiment of a sweep could not be loaded, in which case the report has no claims;
            empty otherwise.
    """

    question: str = "What did this sweep show?"
    claims: Sequence[Claim] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    metric: str | None = None
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
        folders, exclusion = list_experiment_folders(results, config_folder)
        return Experiment(
            missing=f"there is no file {name}.py in {' or '.join(map(str, folders))}{exclusion}"
        )
    experiment = getattr(execute_file(path), "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{path}: defines no EXPERIMENT of the class {Experiment.__module__}.Experiment")
    return experiment
