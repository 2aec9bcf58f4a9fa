"""`cnnexp run`, `plan`, `show` and `wandb-sweep`: the commands that take KEY=VALUE words for Hydra."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnnexp.cli.commands import RESUME, WORDS, Command
from cnnexp.cli.options import AtLeastOne, Folder, OneOf, Text, make_version_option
from cnnexp.core.errors import UsageError
from cnnexp.core.machine import choose_version_base

METHODS = ("grid", "random", "bayes")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
ADVICE = {  # for options of Hydra that would break a sweep
    "--config-path": "use --config-dir DIR to add your own configuration files",
    "--experimental-rerun": "the commands of a sweep are stored in results_dir/name/commands.txt",
    "--shell-completion": 'run: eval "$(cnnexp completion bash)" (or zsh, fish)',
}


def _complete_override(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from cnnexp.cli.completion import complete_override

    words = complete_override(incomplete, ctx.params.get("overrides") or (), ctx.params.get("config_dir"))
    return [CompletionItem(word) for word in words]


def _parameters() -> list[click.Parameter]:
    """Make the options and arguments of all commands that take KEY=VALUE words."""
    unused = [
        click.Option([name, *short], is_flag=False, flag_value="", hidden=True)
        for name, short in zip(ADVICE, (["-cp"], [], ["-sc"]), strict=True)
    ]
    return [
        click.Argument(["overrides"], metavar="[KEY=VALUE]...", nargs=-1, shell_complete=_complete_override),
        click.Option(["--cfg", "-c"], type=OneOf(["job", "hydra", "all"]), help="Print the configuration."),
        click.Option(["--resolve"], is_flag=True, help="With --cfg: resolve interpolations."),
        click.Option(
            ["--package", "-p"], type=Text(), metavar="SECTION", help="With --cfg: only this section."
        ),
        click.Option(
            ["--info", "-i"],
            type=OneOf(INFO),
            is_flag=False,
            flag_value="all",
            help="Print information about Hydra.",
        ),
        click.Option(
            ["--config-dir", "-cd"],
            type=Folder(),
            metavar="DIR",
            help="A folder with your own configuration files.",
        ),
        click.Option(
            ["--config-name", "-cn"],
            type=Text(),
            metavar="NAME",
            help="The main configuration file, instead of `config`.",
        ),
        # Every command is a sweep, and a single run is a sweep of one: these two change nothing.
        click.Option(["--multirun", "-m"], is_flag=True, hidden=True, expose_value=False),
        click.Option(["--run", "-r"], is_flag=True, hidden=True, expose_value=False),
        *unused,
        make_version_option(),
    ]


@click.command("run", cls=Command, params=_parameters(), add_help_option=False)
@click.option("--help", "-h", "keys", is_flag=True, help="Print every key of the chosen groups.")
def run(keys: bool, **options: Any) -> int:
    """Train one run, or the sweep of all combinations of KEY=A,B,C."""
    return _compose(_Options(**options), ["hydra.launcher.action=help"] if keys else [])


@click.command("plan", cls=Command, params=_parameters())
@click.option(
    "--target",
    metavar="CHIPS",
    help="Compile for accelerators that need not be there, such as v5e:2x2 (a grid of TPU chips) or h100: "
    "print the memory that stacks need, how many runs fit, and the predicted time of a step.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the plan as one JSON object, with plain numbers."
)
def plan(target: str | None, as_json: bool, **options: Any) -> int:
    """Show what a sweep would train, cell by cell, and how long it would take.

    The keys are those of `cnnexp run --help`.
    """
    action = ["hydra.launcher.action=plan", f"hydra.launcher.as_json={as_json}"]
    if target is not None and as_json:
        raise UsageError("--json --target: cannot be used together")
    if target is not None:
        import jax

        from cnnexp.sweep.targets import Target

        chips = Target.parse(target)
        chips.check_installed()
        jax.config.update("jax_platforms", "cpu")  # its compilers must not make JAX look for its devices
        action.append(f"hydra.launcher.target='{chips}'")
    return _compose(_Options(**options), action)


@click.command("show", cls=Command, params=_parameters())
def show(**options: Any) -> int:
    """Describe networks layer by layer without allocating them, and draw pictures of layers and images.

    The keys are those of `cnnexp run --help`.
    """
    return _compose(_Options(**options), ["hydra.launcher.action=show"])


@click.command("wandb-sweep", cls=Command, params=_parameters())
@click.option(
    "--method",
    type=OneOf(METHODS),
    default="grid",
    show_default=True,
    help="How W&B chooses the values of the next run.",
)
@click.option(
    "--agents",
    type=AtLeastOne(),
    default=1,
    show_default=True,
    metavar="N",
    help="The number of agents on this machine.",
)
def wandb_sweep(method: str, agents: int, **options: Any) -> int:
    """Run a sweep through W&B agents.

    The keys are those of `cnnexp run --help`.
    """
    keys = {"action": "wandb_sweep", "method": method, "agents": agents}
    return _compose(_Options(**options), [f"hydra.launcher.{key}={value}" for key, value in keys.items()])


@dataclass(frozen=True, kw_only=True)
class _Options:
    """The options and overrides of one of these commands."""

    overrides: tuple[str, ...]
    cfg: str | None
    resolve: bool
    package: str | None
    info: str | None
    config_dir: Path | None
    config_name: str | None
    config_path: str | None
    experimental_rerun: str | None
    shell_completion: str | None

    def __post_init__(self) -> None:
        for name, advice in ADVICE.items():
            if getattr(self, name.removeprefix("--").replace("-", "_")) is not None:
                raise UsageError(f"{name}: not supported; {advice}")
        if self.cfg and self.info:
            raise UsageError(f"--cfg={self.cfg} --info={self.info}: cannot be used together")
        for name in ("resolve", "package"):
            if getattr(self, name) and not self.cfg:
                raise UsageError(f"--{name}: needs --cfg job, hydra or all")

    @property
    def config_options(self) -> tuple[str, ...]:
        """The options that say where configuration files are, as they are typed."""
        return self._format_options("config_dir", "config_name")

    @property
    def printing_options(self) -> tuple[str, ...]:
        """The options with which Hydra prints something and trains nothing, as they are typed."""
        return (*(["--resolve"] if self.resolve else []), *self._format_options("cfg", "package", "info"))

    def _format_options(self, *names: str) -> tuple[str, ...]:
        pairs = ((f"--{name.replace('_', '-')}", getattr(self, name)) for name in names)
        return tuple(text for name, value in pairs if value is not None for text in (name, str(value)))


def _compose(options: _Options, action: Sequence[str]) -> int:
    """Have Hydra compose a sweep and pass it to `CnnexpLauncher`.

    Args:
        options: of the command.
        action: overrides that tell the launcher what to do.

    Returns:
        The exit code.

    Raises:
        UsageError: an option, an override or a configuration file is wrong.
    """
    _check_environment()
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from cnnexp.core.errors import SweepFailed
    from cnnexp.core.machine import find_config_folder, packaged_folder
    from cnnexp.sweep.agents import agent_overrides
    from cnnexp.sweep.overrides import Groups, check_overrides
    from cnnexp.sweep.points import COMMAND_LINE, CommandLine
    from cnnexp.sweep.signals import REQUEUE, Interrupted, ProcessLost
    from cnnexp.sweep.validate import explain, refuse_missing_size

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the exception itself and exits with 1
    conf = packaged_folder("conf")
    config_folder = find_config_folder(options.config_dir)
    groups = Groups((*([config_folder] if config_folder else []), conf))
    words = agent_overrides(options.overrides)
    checked = check_overrides(_choose_groups(words, conf), groups)
    refuse_missing_size(words, groups)
    COMMAND_LINE.set(
        CommandLine(
            words=_typed_words(options, words),
            options=options.config_options,
            overrides=tuple(words),
            config_folder=config_folder,
        )
    )
    search = ["--config-dir", str(config_folder)] if config_folder and not options.config_dir else []
    # Told that every command is a sweep, Hydra explains a wrong key even beside KEY=VALUE,VALUE.
    mode = options.printing_options or ("--multirun",)
    hydra_options = [*search, *options.config_options, *mode]
    sys.argv = ["cnnexp run", *hydra_options, *checked, *action]
    try:
        _start_hydra(conf, options.package)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UsageError(explain(error, groups, words)) from None
    except SweepFailed as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        reason = "another process was lost" if isinstance(error, ProcessLost) else "interrupted and saved"
        print(f"cnnexp: {reason}; {RESUME}", file=sys.stderr)
        return REQUEUE
    return 0


def _typed_words(options: _Options, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a command as they were typed, or those that an agent of W&B has made of them."""
    if tuple(overrides) != options.overrides:
        return (*options.config_options, *overrides)
    return click.get_current_context().meta[WORDS]


def _start_hydra(conf: Path, package: str | None) -> None:
    import hydra

    decorate = hydra.main(config_path=str(conf), config_name="config", **choose_version_base())
    app = decorate(_refuse_other_plugins)
    with _refuse_unknown_section(package):
        app()


def _check_environment() -> None:
    """Refuse environment variables that JAX and XLA cannot read, at which they would raise an error or abort.

    Raises:
        UsageError: with the variable.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-") and not Path(flags).is_file():
        raise UsageError(f"XLA_FLAGS={flags}: must be flags (--NAME=VALUE), or a file with them")
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise UsageError(f"environment: {error}") from None


def _refuse_other_plugins(_: object) -> None:
    """Refuse to train without `CnnexpLauncher`; only another launcher would call this function."""
    raise UsageError(
        "hydra/sweeper, hydra/launcher: a configuration file chooses plugins other than cnnexp's; "
        "choose where a sweep is trained with launcher=local, slurm or ray"
    )


@contextlib.contextmanager
def _refuse_unknown_section(package: str | None):
    """Refuse `--package` of a section that does not exist, for which Hydra exits with 1."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr) if package else contextlib.nullcontext():
            yield
    except SystemExit as stop:
        if stop.code == 1 and stderr.getvalue():
            raise UsageError(f"--package {package}: no such section of the configuration") from None
        raise


def _choose_groups(words: Sequence[str], conf: Path) -> list[str]:
    """Let `model.name=mlp` choose the group `model=mlp`, where each of its names is a file of the group."""

    def group_for(word: str) -> str:
        match = re.fullmatch(r"(model|data|optim|launcher)\.name=([\w,/-]+)", word)
        if match is None or any(other.startswith(f"{match[1]}=") for other in words):
            return word
        names = match[2].split(",")
        if match[1] == "optim" and not set(names) <= {"adamw", "sgd"}:  # the name alone, as of all of Optax
            return word
        files = [conf / match[1] / f"{name}.yaml" for name in names]
        return f"{match[1]}={match[2]}" if all(file.exists() for file in files) else word

    return [group_for(word) for word in words]
