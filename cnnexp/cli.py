"""The commands. Heavy packages are imported by the command that needs them."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cnnexp import __version__
from cnnexp.errors import UsageError, suggestion
from cnnexp.paths import shipped
from cnnexp.store.guard import printable
from cnnexp.terminal import CLOSED_PIPE, DISK_ERROR, disk_line, is_of_disk, prepare_terminal

USAGE_ERROR, FAILED = 2, 1
GOES_ON = "the same command goes on with what is missing"
FORMATS = ("table", "csv", "parquet", "latex", "markdown")
DATA_DIR = "default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
# What every command is: Hydra takes the flag in some places only, and one run is a sweep of one.
MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN", "hydra.mode=RUN")
DESCRIPTION = """\
Why do convolutions work? Sweeps over kernel size, stride and weight tying, and what they show.

  cnnexp run experiment=why_convolutions    train the sweep that answers the question
  cnnexp report why_convolutions            its table, figures and verdicts
  cnnexp results why_convolutions --by      the same numbers as CSV, LaTeX, Markdown or Parquet
  cnnexp compare NAME OTHER                 two sweeps side by side
  cnnexp run --help                         all keys, with examples
  cnnexp plan seed=range(100)               what a sweep would do and how long it would take
  cnnexp show model.tying=shared,local      what a network owns and costs, and pictures of layers and images
  cnnexp sync why_convolutions              send to W&B what it lacks of a sweep
  cnnexp dashboard why_convolutions         a W&B workspace and report of it
"""


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
        from cnnexp.sweep.together import leave_processes

        leave_processes(code, error)


def _command(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["run"]:
        return _run(list(arguments[1:]))
    if arguments[:1] in (["plan"], ["show"]) and arguments[1:2] not in (["-h"], ["--help"]):
        return _run([*arguments[1:], f"hydra.launcher.action={arguments[0]}"])
    if arguments[:1] == ["wandb-sweep"] and not {"-h", "--help"} & set(arguments):
        return _wandb_sweep(arguments)
    options = _parser().parse_args(arguments)
    if options.command == "report":
        from cnnexp.analysis.report import print_report, publish, write_report

        report = write_report(Path(options.results_dir) / options.name)
        print_report(report)
        if options.publish:
            print(publish(report, options.publish))
    elif options.command == "results":
        from cnnexp.analysis.results import results

        results(
            Path(options.results_dir) / options.name,
            conditions=options.where,
            by=options.by,
            form=options.format,
            output=options.output,
        )
    elif options.command == "compare":
        from cnnexp.analysis.compare import compare

        compare(*(_sweep(options, name) for name in (options.first, options.second)), form=options.format)
    elif options.command == "sync":
        return _sync(options)
    elif options.command == "dashboard":
        return _dashboard(options)
    elif options.command == "data":
        if options.action == "prepare":
            from cnnexp.data.prepare import prepare

            source = Path(options.source).expanduser() if options.source else None
            print(prepare(options.name, source, options.data_dir).folder)
        else:
            from cnnexp.data.listing import print_prepared

            print_prepared(options.data_dir)
    return 0


def _sweep(options: argparse.Namespace, name: str) -> Path:
    """A sweep by its name under the results, or by the path of its folder."""
    under = Path(options.results_dir) / name
    return Path(name) if not under.exists() and Path(name).is_dir() else under


def _sync(options: argparse.Namespace) -> int:
    from cnnexp.tracking.sync import NotSent, sync

    try:
        sync(Path(options.results_dir), options.name, follow=options.follow, to=options.to)
    except NotSent as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return FAILED
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from cnnexp.tracking.dashboard import save, write_dry_run
    from cnnexp.tracking.mirror import outage_line
    from cnnexp.tracking.sync import sweep_folder, target_of_sweep
    from cnnexp.tracking.target import Reachability, resolve_mode

    results = Path(options.results_dir)
    if options.local:
        from cnnexp.tracking.trackio_run import show_trackio

        resolve_mode("local")
        show_trackio(results, options.project)
        return 0
    if options.name is None:
        raise UsageError("dashboard: of which sweep? type: cnnexp dashboard NAME")
    folder = sweep_folder(results, options.name)
    if options.dry_run:
        print(write_dry_run(folder, target_of_sweep(folder, "offline")))
        return 0
    target, server = target_of_sweep(folder, "online"), Reachability()
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


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="cnnexp", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="train one run or a sweep", add_help=False)
    commands.add_parser(
        "show",
        help="describe networks, layer by layer, without making them",
        usage="cnnexp show [KEY=VALUE ...]   the keys are those of cnnexp run",
    )
    commands.add_parser(
        "plan",
        help="what a sweep would do, cell by cell, and how long it would take",
        usage="cnnexp plan [KEY=VALUE ...]   the keys are those of cnnexp run",
    )
    wandb_sweep = commands.add_parser(
        "wandb-sweep",
        help="have W&B's agents carry out a sweep",
        usage="cnnexp wandb-sweep [--method grid] [--agents 1] [KEY=VALUE ...]   keys as in cnnexp run",
    )
    wandb_sweep.add_argument("--method", choices=["grid", "random", "bayes"], default="grid")
    wandb_sweep.add_argument("--agents", type=int, default=1, metavar="N", help="processes on this machine")
    report = commands.add_parser("report", help="table, figures and verdicts of a sweep")
    report.add_argument("name", help="the sweep's folder under the results")
    report.add_argument("--results-dir", default="results", metavar="DIR")
    report.add_argument(
        "--publish",
        type=Path,
        metavar="DIR",
        help="also as DIR/NAME.md with small figures, to be kept beside code",
    )
    results = commands.add_parser("results", help="a sweep's runs, or its cells, as a table")
    results.add_argument("name", help="the sweep's folder under the results")
    results.add_argument("--results-dir", default="results", metavar="DIR")
    results.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="COND",
        help="model.tying=shared,local, seed<3, …: runs that fulfil all",
    )
    results.add_argument(
        "--by", nargs="*", metavar="KEY", help="a row a cell of these keys; none: of all that vary"
    )
    compare = commands.add_parser("compare", help="two sweeps side by side: what moved beyond its interval")
    compare.add_argument("first", help="a sweep's folder under the results, or anywhere")
    compare.add_argument("second", help="another one")
    compare.add_argument("--results-dir", default="results", metavar="DIR")
    for command in (results, compare):
        command.add_argument("--format", choices=FORMATS, default="table")
    results.add_argument("--output", "-o", type=Path, metavar="FILE")
    sync = commands.add_parser("sync", help="send to W&B what it lacks of a sweep")
    sync.add_argument("name", nargs="?", help="the sweep's folder under the results; none: all of them")
    sync.add_argument("--results-dir", default="results", metavar="DIR")
    sync.add_argument("--follow", action="store_true", help="go on while any worker is at the sweep")
    sync.add_argument(
        "--to", metavar="DIR", help="write W&B's offline files there instead; trackio: to Trackio"
    )
    dashboard = commands.add_parser("dashboard", help="make a W&B workspace and report of a sweep")
    dashboard.add_argument("name", nargs="?", help="the sweep's folder under the results")
    dashboard.add_argument("--results-dir", default="results", metavar="DIR")
    dashboard.add_argument("--project", default="cnnexp", help="that --local opens")
    dashboard.add_argument(
        "--local", action="store_true", help="Trackio's page of all runs, on this machine alone"
    )
    dashboard.add_argument("--dry-run", action="store_true", help="only write their specifications as JSON")
    data = commands.add_parser("data", help="prepare and list image sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="prepare a TFDS image set once")
    prepare.add_argument("name", help="as TFDS calls it: cifar10, emnist/letters, …")
    prepare.add_argument("--from", dest="source", metavar="DIR", help="files already downloaded")
    listing = actions.add_parser("list", help="the prepared sets: where they are, and how large")
    for action in (prepare, listing):
        action.add_argument("--data-dir", metavar="DIR", help=DATA_DIR)
    return parser


class _OneLineParser(argparse.ArgumentParser):
    """argparse without the usage lines above every error."""

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument (\w+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            allowed = re.findall(r"'([^']+)'", match[3])
            message = f"{match[1]} {match[2]}: {suggestion(match[2], allowed)}"
        raise UsageError(f"{message}; type: {self.prog} --help")


def _wandb_sweep(arguments: Sequence[str]) -> int:
    options, overrides = _parser().parse_known_args(arguments)
    if options.agents < 1:
        raise UsageError(f"--agents {options.agents}: allowed: 1 and more")
    launcher = {"action": "wandb_sweep", "method": options.method, "agents": options.agents}
    return _run([*overrides, *(f"hydra.launcher.{key}={value}" for key, value in launcher.items())])


def _run(arguments: list[str]) -> int:
    """Hand the overrides to Hydra; what it refuses becomes one line."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from cnnexp.sweep.compose import quote_tyings
    from cnnexp.sweep.execute import SweepFailed
    from cnnexp.sweep.interruption import REQUEUE, Interrupted, ProcessLost
    from cnnexp.sweep.refusals import explain
    from cnnexp.sweep.wandb_sweep import agent_overrides

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the exception itself and exits with 1
    conf = shipped("conf")
    arguments = [argument for argument in agent_overrides(arguments) if argument not in MULTIRUN]
    arguments = quote_tyings(_groups_by_name(arguments, conf))
    sys.argv = ["cnnexp run", *arguments]
    app = hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(lambda _: None)
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, conf, arguments)) from None
    except SweepFailed as error:
        print(f"cnnexp: {error}", file=sys.stderr)
        return FAILED
    except Interrupted as error:
        what = "one of the processes is gone" if isinstance(error, ProcessLost) else "interrupted and saved"
        print(f"cnnexp: {what}; {GOES_ON}", file=sys.stderr)
        return REQUEUE
    return 0


def _groups_by_name(arguments: Sequence[str], conf: Path) -> list[str]:
    """Let `model.name=mlp` choose the group `model=mlp`, where each of its names is a file of the group."""

    def group_for(argument: str) -> str:
        match = re.fullmatch(r"(model|data|optim|launcher)\.name=([\w,/-]+)", argument)
        if match is None or any(other.startswith(f"{match[1]}=") for other in arguments):
            return argument
        files = [conf / match[1] / f"{name}.yaml" for name in match[2].split(",")]
        return f"{match[1]}={match[2]}" if all(file.exists() for file in files) else argument

    return [group_for(argument) for argument in arguments]
