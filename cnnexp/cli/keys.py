"""`cnnexp run --help`: every key of the chosen groups, and the experiments with the question each asks."""

import ast
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnexp.config import SECTIONS, RunConfig, find_section_class
from cnnexp.config.describe import KeyDescription, describe_keys, section_summary
from cnnexp.core.errors import format_value
from cnnexp.core.machine import packaged_folder
from cnnexp.sweep.overrides import Groups

WIDEST = 110  # columns of text
USAGE = """\
cnnexp run [KEY=VALUE ...]    Train one run, or the sweep of all combinations of KEY=A,B,C.

  cnnexp run experiment=why_convolutions                   the sweep that answers the question
  cnnexp run model.tying=shared,local seed=0,1,2           two cells, three seeds each
  cnnexp run model.kernel_size=3,5,7 model.stride=1,2      the whole network; a list, [5,3], sets each layer
  cnnexp run data=fashion_mnist train.epochs=5             real images through TFDS
  cnnexp run data.pixel_noise=0,0.1,0.3 data.corrupt=test  train on clean images, test on noisy ones
  cnnexp run --cfg job data=fashion_mnist                  print the configuration, train nothing
  cnnexp run model=mlp --help                              the keys of another group

Options: --config-dir DIR, --config-name NAME, --cfg job|hydra|all, --resolve, --package SECTION,
         --info [WHAT]; cnnexp plan --help explains them"""


def print_keys(values: Mapping[str, Any], groups: Groups) -> None:
    """Print the groups, the experiments, and every key with its value, allowed values and explanation.

    Args:
        values: a composed configuration.
        groups: of the configuration files.
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    print(USAGE)
    print("\nGROUPS, chosen with GROUP=NAME")
    for group in (*SECTIONS, "size"):
        print(_wrap(f"{group}: {', '.join(groups.names(group))}", width, "  ", "    "))
    print("\nEXPERIMENTS, chosen with experiment=NAME, and what each asks")
    for name, question in experiment_questions(groups).items():
        print(_wrap(f"{name}: {question}", width, "  ", "    "))
    top = [key for key in RunConfig.model_fields if key not in SECTIONS]
    print("\nKEYS, set with KEY=VALUE; the values shown are those of this command")
    for key in describe_keys(RunConfig, top):
        _print_key(key.name, key, values.get(key.name), width)
    for section in SECTIONS:
        inner = values[section]
        schema = find_section_class(section, str(inner.get("name", "")))
        print()
        print(_wrap(f"{section.upper()}  {section_summary(schema)}", width, "", "  "))
        for key in describe_keys(schema):
            _print_key(f"{section}.{key.name}", key, inner.get(key.name), width)


def experiment_questions(groups: Groups) -> dict[str, str]:
    """Return the question that each experiment asks, by its name, without importing its module."""
    return {name: _find_question(name, groups.folders) for name in groups.names("experiment")}


def _find_question(name: str, folders: Sequence[Path]) -> str:
    """Return the first line of an experiment's module, or else of its configuration file."""
    for module in (packaged_folder("experiments") / f"{name}.py", Path("experiments") / f"{name}.py"):
        if module.is_file():
            text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            return text.partition("\n")[0]
    return next(
        (line for folder in folders for line in _read_comments(folder / "experiment" / f"{name}.yaml")), ""
    )


def _read_comments(file: Path) -> Iterator[str]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("# ") and not line.startswith("# @package"):
                yield line.removeprefix("# ")


def _print_key(name: str, key: KeyDescription, value: Any, width: int) -> None:
    print(_wrap(f"{name}={format_value(value)}    ({key.allowed})", width, "  ", "      "))
    print(_wrap(key.explanation, width, "      ", "      "))


def _wrap(text: str, width: int, first: str, rest: str) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
