"""What an experiment asks and claims: a module of an `experiments` folder, found by its name."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnexp.analysis.claims import Claim
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import shipped
from cnnexp.plots.figures import Drawing

NONE = "default"  # what `experiment` is where nobody asked for one
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the report of a sweep says beyond its table.

    Attributes:
        question: the report's title.
        claims: what it judges.
        figures: by the names of their files.
        missing: why there is nothing but the table, where an experiment was asked for; else empty.
    """

    question: str = "What did this sweep show?"
    claims: Sequence[Claim] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    missing: str = ""


def load_experiment(name: str, results: Path | None = None) -> Experiment:
    """Load the `EXPERIMENT` of `NAME.py` in cnnexp's own `experiments` folder or in the working folder's.

    The name may come from a folder of results that somebody else made. So it must be a Python name, it is
    looked for in these two folders alone, and a file inside the results is never executed.

    Args:
        name: of the experiment.
        results: the folder that holds the sweep's.

    Raises:
        UsageError: the file defines no `EXPERIMENT`.
    """
    if name == NONE:
        return Experiment()
    if not NAME.fullmatch(name):
        return Experiment(missing=f"experiment {name!r} is not a name of letters, digits and _")
    folders, refused = _folders(results)
    files = (folder / f"{name}.py" for folder in folders)
    path = next((file for file in files if file.is_file() and not _lies_in(file, results)), None)
    if path is None:
        return Experiment(missing=f"there is no {name}.py in {' or '.join(map(str, folders))}{refused}")
    spec = importlib.util.spec_from_file_location(f"cnnexp_experiment_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{path}: defines no EXPERIMENT of the class {Experiment.__module__}.Experiment")
    return experiment


def _folders(results: Path | None) -> tuple[list[Path], str]:
    """Where experiments are looked for, and, in words, where they are not."""
    own = Path("experiments").resolve()
    if _lies_in(own, results):
        return [shipped("experiments")], f"; {own} lies inside the results, which are never executed"
    return list(dict.fromkeys([shipped("experiments"), own])), ""


def _lies_in(path: Path, results: Path | None) -> bool:
    return results is not None and path.resolve().is_relative_to(results.resolve())
