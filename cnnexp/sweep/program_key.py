"""The key of a program: all that the XLA program of a run depends on, as text."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from cnnexp.config import OMITTED_AT_DEFAULT, TRACED_KEYS, RunConfig
from cnnexp.config.data import OPTIONAL_CORRUPTIONS, STRENGTH_KEYS, DataSection
from cnnexp.data.shapes import infer_shape
from cnnexp.training.named_optimizers import list_traced_options
from cnnexp.training.schedule import resolve_duration

OPTIONAL = "optional"  # of a corruption: some runs have it, others lack it


def make_program_key(run: RunConfig, optional: Sequence[str] = ()) -> str:
    """Return, as JSON, what the XLA program of a run depends on: its identity without the traced values.

    Of the images it depends on the shape and the number alone.

    Args:
        run: the run.
        optional: the corruptions that are branches of the program.
    """
    values = run.identity()
    del values["seed"], values["data"]["train_size"], values["data"]["split_seed"]
    for key in set(type(run.data).model_fields) - set(DataSection.model_fields):
        values["data"].pop(key, None)
    values["data"]["shape"] = asdict(infer_shape(run.data))
    for section, keys in TRACED_KEYS.items():
        for key in keys:
            value = values[section].pop(key, None)
            if key in optional:
                values[section][key] = OPTIONAL
            elif key in STRENGTH_KEYS:  # the program depends on whether there is any, not on how much
                values[section][key] = bool(value)
            elif key in OMITTED_AT_DEFAULT.get(section, ()):
                values[section][key] = value is not None
    if "permutation" in optional and run.data.permutation != "per_image":
        values["data"]["permutation"] = OPTIONAL
    for name in list_traced_options(run.optim):
        values["optim"]["options"][name] = "traced"
    duration = resolve_duration(run)  # in steps: runs of equally many steps have one program
    for key in ("epochs", "steps", "eval_every"):
        del values["train"][key]
    carried_out = [run.train.parallel, run.train.profile, run.sweep.stacking]
    return json.dumps([values, duration.steps, duration.evaluate_after, carried_out], sort_keys=True)


def make_common_key(runs: Sequence[RunConfig]) -> str:
    """Return the key of the program that trains runs which differ in nothing but `OPTIONAL_CORRUPTIONS`."""
    return make_program_key(runs[0], find_optional(runs))


def find_optional(runs: Sequence[RunConfig]) -> list[str]:
    """List the corruptions that some of the runs have and others lack."""
    values = {
        key: {getattr(run.data, key) not in (0, "none") for run in runs} for key in OPTIONAL_CORRUPTIONS
    }
    return [key for key, present in values.items() if len(present) > 1]


def read_optional(program_key: str) -> list[str]:
    """Return the corruptions that are branches of a program, as some of its runs lack them."""
    data = json.loads(program_key)[0]["data"]
    return [key for key in OPTIONAL_CORRUPTIONS if data[key] == OPTIONAL]
