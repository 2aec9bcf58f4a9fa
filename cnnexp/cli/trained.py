"""The commands about trained networks: `eval` and `probe`."""

from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.cli.options import find_sweep, results_dir_option, sweep_argument
from cnnexp.core.errors import UsageError

code_option = click.option(
    "--code",
    metavar="FILE",
    multiple=True,
    help="A file of code that the networks may execute although it is not the one they were trained with.",
)


@click.command("eval", cls=Command)
@sweep_argument()
@click.argument("conditions", metavar="[data.KEY=VALUE]...", nargs=-1)
@code_option
@results_dir_option
def evaluate(name: str, conditions: tuple[str, ...], code: tuple[str, ...], results_dir: Path) -> None:
    """Evaluate the trained networks of the sweep NAME under other conditions.

    The conditions are the keys of `cnnexp run` that corrupt images, such as data.pixel_noise=0.1,0.2. The
    metrics are stored beside each run; `cnnexp results NAME --evaluations` prints them.
    """
    folder = find_sweep(name, results_dir)
    if not conditions:
        raise UsageError("data.KEY=VALUE: missing; for example: data.pixel_noise=0.1")
    from cnnexp.cli.tables import print_results
    from cnnexp.core.text import pluralize
    from cnnexp.sweep.trained import evaluate_sweep

    number = evaluate_sweep(folder, conditions, code)
    print_results(folder, evaluations=True)
    print(f"{pluralize(number, 'evaluation')} stored")


@click.command("probe", cls=Command)
@sweep_argument()
@code_option
@results_dir_option
def probe(name: str, code: tuple[str, ...], results_dir: Path) -> None:
    """Probe the trained networks of the sweep NAME.

    The command adds the columns probe/… to the runs: the equivariance error, the consistency under shifts,
    distances between kernels, the locality of dense kernels, and the size of effective receptive fields.
    """
    folder = find_sweep(name, results_dir)
    from cnnexp.core.text import pluralize
    from cnnexp.sweep.trained import probe_sweep

    number = pluralize(probe_sweep(folder, code), "run")
    print(f"{number} probed; columns probe/…: cnnexp.load_sweep('{folder}')")
