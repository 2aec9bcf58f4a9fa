"""The commands. Heavy packages are imported by the command that needs them."""

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cnnexp.cli.options import command_parser, read_sweep_options
from cnnexp.core.errors import UsageError, suggestion
from cnnexp.core.machine import check_writable, shipped
from cnnexp.core.terminal import (
    CLOSED_PIPE,
    DISK_ERROR,
    disk_line,
    is_of_disk,
    prepare_terminal,
)
from cnnexp.store.files import printable

USAGE_ERROR, FAILED = 2, 1
GOES_ON = "the same command goes on with what is missing"
SWEEPS = ("run", "plan", "show", "wandb-sweep")  # commands that take KEY=VALUE words


def main() -> None:
    """Entry point: errors that a user can cause are one line and exit code 2, those of a disk are 74."""
    prepare_terminal()
    try:
        code = _command(sys.argv[1:])
        sys.stdout.flush()
    except UsageError as error:
        print(f"cnnexp: {printable(str(error))}", file=sys.stderr)
        code = USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\ncnnexp: interrupted; {GOES_ON}", file=sys.stderr)
        code = 130
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        code = CLOSED_PIPE
    except Exception as error:
        if isinstance(error, OSError) and is_of_disk(error):
            print(f"cnnexp: {disk_line(error)}", file=sys.stderr)
            _leave_others(DISK_ERROR)
            sys.exit(DISK_ERROR)
        _leave_others(FAILED, error)
        raise
    if code:
        _leave_others(code)
    sys.exit(code)


def _leave_others(code: int, error: Exception | None = None) -> None:
    if "jax" in sys.modules:
        from cnnexp.sweep.multiprocess import leave_processes

        leave_processes(code, error)


def _command(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else ""
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    if command in SWEEPS and not (wants_help and command != "run"):
        return _compose_and_launch(command, arguments[1:])
    if command == "_complete":
        from cnnexp.cli.completion import complete

        print("\n".join(complete(" ".join(arguments[1:]))))
        return 0
    options = command_parser().parse_args(arguments)
    if options.command == "report":
        _report(options)
    elif options.command == "results":
        from cnnexp.cli.tables import print_results

        folder = _sweep(options, options.name)
        if options.output:
            _check_output(options.output)
        print_results(
            folder,
            conditions=options.where,
            by=options.by,
            form=options.format,
            output=options.output,
        )
    elif options.command == "compare":
        from cnnexp.cli.tables import print_comparison

        print_comparison(
            *(_sweep(options, name) for name in (options.first, options.second)), form=options.format
        )
    elif options.command == "sync":
        return _sync(options)
    elif options.command == "dashboard":
        return _dashboard(options)
    elif options.command == "data":
        _data(options)
    elif options.command == "completion":
        from cnnexp.cli.completion import script

        print(script(options.shell))
    return 0


def _results(options: argparse.Namespace) -> Path:
    """The folder of sweeps.

    Raises:
        UsageError: there is no such folder.
    """
    folder: Path = options.results_dir
    if not folder.exists() and str(folder) == "results":
        raise UsageError("no sweep in results/ yet; type: cnnexp run --help")
    if not folder.is_dir():
        what = "must be a folder" if folder.exists() else "no such folder"
        raise UsageError(f"--results-dir {folder}: {what}")
    return folder


def _sweep(options: argparse.Namespace, name: str) -> Path:
    """A sweep by its name under the results, or by the path of its folder.

    Raises:
        UsageError: there is no such sweep.
    """
    from cnnexp.store.runs import run_folders

    elsewhere = Path(name).expanduser()
    folder = elsewhere if name and run_folders(elsewhere) else None
    results = options.results_dir if folder else _results(options)
    if name and run_folders(results / name):
        return results / name
    if folder:
        return folder
    known = sorted(path.name for path in results.iterdir() if run_folders(path))
    advice = suggestion(name, known) if known else "there is none yet; type: cnnexp run --help"
    raise UsageError(f"{name or repr(name)}: no such sweep in {results}; {advice}")


def _report(options: argparse.Namespace) -> None:
    from cnnexp.report.output import print_report, publish_report, write_report

    folder = _sweep(options, options.name)
    if options.publish:
        check_writable(options.publish, f"--publish {options.publish}")
    report = write_report(folder)
    print_report(report)
    if options.publish:
        print(publish_report(report, options.publish))


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise UsageError(f"--output {output}: must be a file (got a folder)")
    if not output.parent.exists():
        raise UsageError(f"--output {output}: no such folder: {output.parent}")
    check_writable(output.parent, f"--output {output}")


def _data(options: argparse.Namespace) -> None:
    """Prepare or list image sets."""
    from cnnexp.data.tfds.prepared import resolve_data_dir

    data_dir = str(options.data_dir) if options.data_dir else None
    folder = resolve_data_dir(data_dir)
    given = f"--data-dir {folder}" if data_dir else f"TFDS_DATA_DIR={folder}"
    if options.action == "prepare":
        from cnnexp.data.tfds.prepare import prepare

        check_writable(folder, given)
        print(prepare(options.name, options.source, data_dir).folder)
        return
    from cnnexp.cli.data import print_prepared

    if os.environ.get("TFDS_DATA_DIR") and not folder.is_dir():
        raise UsageError(f"{given}: {'must be a folder' if folder.exists() else 'no such folder'}")
    print_prepared(data_dir)


def _sync(options: argparse.Namespace) -> int:
    from cnnexp.tracking.sync import NotSent, sync

    results = _results(options)
    if options.to and options.to != "trackio":
        check_writable(Path(options.to).expanduser(), f"--to {options.to}")
    try:
        sync(results, options.name, follow=options.follow, to=options.to)
    except NotSent as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return FAILED
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from cnnexp.tracking.sync import sweep_folder, target_of_sweep
    from cnnexp.tracking.target import Reachability, resolve_mode

    if options.local:
        from cnnexp.tracking.trackio_run import show_trackio

        given = options.name or ("--dry-run" if options.dry_run else None)
        if given:
            raise UsageError(f"--local {given}: Trackio shows all runs; leave out {given}")
        resolve_mode("local")
        show_trackio(_results(options), options.project or "cnnexp")
        return 0
    if options.project:
        raise UsageError(f"--project {options.project}: goes with --local; a sweep has its own project")
    if options.name is None:
        raise UsageError("dashboard: of which sweep? type: cnnexp dashboard NAME")
    results = _results(options)
    folder = sweep_folder(results, options.name)
    target, server = target_of_sweep(folder, "offline" if options.dry_run else "online"), Reachability()
    from cnnexp.tracking.dashboard import save, write_dry_run
    from cnnexp.tracking.mirror import outage_line

    if options.dry_run:
        print(write_dry_run(folder, target))
        return 0
    if not server:
        print(f"cnnexp: W&B: {server.host} is out of reach; --dry-run writes a file", file=sys.stderr)
        return FAILED
    try:
        addresses = save(folder, target)
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        print(f"cnnexp: W&B: {outage_line(error)}", file=sys.stderr)
        return FAILED
    print("\n".join(addresses.values()))
    return 0


def _compose_and_launch(command: str, arguments: Sequence[str]) -> int:
    """Hand a sweep to Hydra; what it refuses becomes one line."""
    _check_environment()
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from cnnexp.sweep.agents import agent_overrides
    from cnnexp.sweep.overrides import Groups, check_overrides
    from cnnexp.sweep.points import TYPED, Typed
    from cnnexp.sweep.run import SweepFailed
    from cnnexp.sweep.signals import REQUEUE, Interrupted, ProcessLost
    from cnnexp.sweep.validate import explain

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the exception itself and exits with 1
    options = read_sweep_options(command, arguments)
    conf = shipped("conf")
    groups = Groups((*([options.config_dir] if options.config_dir else []), conf))
    words = agent_overrides(options.overrides)
    checked = check_overrides(_groups_by_name(words, conf), groups)
    TYPED.set(Typed(options=_where(options), overrides=tuple(words)))
    sys.argv = ["cnnexp run", *_where(options), *_shown(options), *checked, *_action(command, options)]
    app = hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(_not_launched)
    try:
        with _sections_that_exist(options.package):
            app()
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UsageError(explain(error, groups, words)) from None
    except SweepFailed as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return FAILED
    except Interrupted as error:
        what = "one of the processes is gone" if isinstance(error, ProcessLost) else "interrupted and saved"
        print(f"cnnexp: {what}; {GOES_ON}", file=sys.stderr)
        return REQUEUE
    return 0


def _check_environment() -> None:
    """Refuse variables that JAX and XLA cannot read, for which they raise, or abort.

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


def _where(options: argparse.Namespace) -> tuple[str, ...]:
    """Options that say where configurations are found, as they are typed."""
    pairs = (("--config-dir", options.config_dir), ("--config-name", options.config_name))
    return tuple(text for name, value in pairs if value is not None for text in (name, str(value)))


def _shown(options: argparse.Namespace) -> list[str]:
    """Options that have Hydra print something, and nothing trained."""
    pairs = (("--cfg", options.cfg), ("--package", options.package), ("--info", options.info))
    flags = [f"--{name}" for name in ("help", "resolve") if getattr(options, name)]
    return flags + [text for name, value in pairs if value is not None for text in (name, value)]


def _action(command: str, options: argparse.Namespace) -> list[str]:
    """What our launcher is to do, as overrides of its own."""
    if command == "wandb-sweep":
        keys = {"action": "wandb_sweep", "method": options.method, "agents": options.agents}
        return [f"hydra.launcher.{key}={value}" for key, value in keys.items()]
    return [f"hydra.launcher.action={command}"] if command != "run" else []


def _not_launched(_: object) -> None:
    raise UsageError(
        "hydra/sweeper, hydra/launcher: a configuration file chooses others than cnnexp's; "
        "launcher=local, slurm or ray says where a sweep is trained"
    )


@contextlib.contextmanager
def _sections_that_exist(package: str | None):
    """Refuse `--package` of a section that does not exist, for which Hydra exits with 1."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said) if package else contextlib.nullcontext():
            yield
    except SystemExit as stop:
        if stop.code == 1 and said.getvalue():
            raise UsageError(f"--package {package}: no such section of the configuration") from None
        raise


def _groups_by_name(arguments: Sequence[str], conf: Path) -> list[str]:
    """Let `model.name=mlp` choose the group `model=mlp`, where each of its names is a file of the group."""

    def group_for(argument: str) -> str:
        match = re.fullmatch(r"(model|data|optim|launcher)\.name=([\w,/-]+)", argument)
        if match is None or any(other.startswith(f"{match[1]}=") for other in arguments):
            return argument
        files = [conf / match[1] / f"{name}.yaml" for name in match[2].split(",")]
        return f"{match[1]}={match[2]}" if all(file.exists() for file in files) else argument

    return [group_for(argument) for argument in arguments]
