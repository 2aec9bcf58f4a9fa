"""What an experiment asks and claims: a module of the `experiments` folder, found by its name."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cnnexp.analysis.claims import Claim
from cnnexp.analysis.figures import Drawing
from cnnexp.paths import shipped


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the report of a sweep says beyond its table; figures by the name of their files."""

    question: str = "What did this sweep show?"
    claims: Sequence[Claim] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)


def load_experiment(name: str) -> Experiment:
    """The `EXPERIMENT` of `experiments/<name>.py`; a sweep without such a file has only its table."""
    path = shipped("experiments") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"cnnexp_experiment_{name}", path)
    if not path.exists() or spec is None or spec.loader is None:
        return Experiment()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPERIMENT
