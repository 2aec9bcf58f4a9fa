"""The runs that a command asks for, and how a person asks for them again."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from cnnexp.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The words of a command: options that say where configurations are found, and overrides."""

    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """Return the command, quoted for a shell."""
        return shlex.join(["cnnexp", "run", *self.options, *self.overrides])

    @property
    def context(self) -> tuple[str, ...]:
        """Return what each run of the sweep needs to be composed again, beside its own overrides."""
        paths = (word for word in self.overrides if word.lstrip("+").startswith("hydra.searchpath="))
        return (*self.options, *paths)


COMMAND_LINE: ContextVar[CommandLine] = ContextVar("command_line", default=CommandLine())  # noqa: B039  (a frozen value)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of a sweep's overrides, and the configuration that it makes.

    Attributes:
        config: what is trained.
        overrides: that tell it from the other jobs, and those that all have.
        context: options and overrides of Hydra without which `overrides` would make another configuration.
    """

    config: RunConfig
    overrides: tuple[str, ...] = ()
    context: tuple[str, ...] = ()


class Cells:
    """Runs that differ in their seeds alone, named by the overrides that tell them from the other cells."""

    def __init__(self, jobs: Mapping[str, Job]):
        pairs = {run_id: [_key_and_value(o) for o in job.overrides] for run_id, job in jobs.items()}
        values: dict[str, set[str]] = {}
        for key, value in (pair for given in pairs.values() for pair in given):
            values.setdefault(key, set()).add(value)
        self._varying = [key for key in values if len(values[key]) > 1 and key != "seed"]
        self._names = {run_id: self._name(dict(given)) for run_id, given in pairs.items()}

    def name(self, run_id: str) -> str:
        """Return the cell of a run: `tying=local kernel_size=5`."""
        return self._names[run_id]

    def common_name(self, runs: Iterable[str]) -> str:
        """Return what all cells of these runs have in common: `tying=local (4 cells)`."""
        names = list(self.members(runs))
        if len(names) == 1:
            return names[0]
        common = [word for word in names[0].split(" ") if all(word in name.split(" ") for name in names)]
        return " ".join([*common, f"({len(names)} cells)"])

    def members(self, runs: Iterable[str]) -> dict[str, list[str]]:
        """Return the runs of each cell, by the cell's name."""
        members: dict[str, list[str]] = {}
        for run_id in runs:
            members.setdefault(self._names[run_id], []).append(run_id)
        return members

    def _name(self, given: Mapping[str, str]) -> str:
        named = (f"{key.rpartition('.')[2]}={given[key]}" for key in self._varying if key in given)
        return " ".join(named) or "the run"


def rerun_commands(jobs: Sequence[Job]) -> list[str]:
    """Return the commands that run just these jobs: one for each cell."""
    seeds: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        rest = (*job.context, *(o for o in job.overrides if not o.startswith(("seed=", "hydra."))))
        seeds.setdefault(rest, []).append(str(job.config.seed))
    return [
        shlex.join(["cnnexp", "run", *rest, f"seed={','.join(dict.fromkeys(values))}"])
        for rest, values in seeds.items()
    ]


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value
