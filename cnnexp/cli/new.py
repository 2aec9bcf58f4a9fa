"""`cnnexp new`: a small project with an experiment, a network and images of the user's own."""

import os
import re
import shlex
from pathlib import Path

import click

from cnnexp.cli.commands import Command
from cnnexp.core.errors import UsageError

TEMPLATES = Path(__file__).parent / "project"
QUESTION = "Does weight sharing help a residual network to find a pattern?"


@click.command("new", cls=Command)
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Write the project NAME into a new folder: an experiment, a network, images, tests and a README."""
    folder = Path(name)
    _check_name(name, folder)
    from cnnexp.store.files import write_text

    for path, text in _render(name).items():
        write_text(folder / path, text)
        print(folder / path)
    print(f"next: cd {shlex.quote(name)} && cnnexp run experiment={name} && cnnexp report {name}")


def _check_name(name: str, folder: Path) -> None:
    """Refuse a name that no experiment can have, and a folder with other files.

    Raises:
        UsageError: with the nearest valid name.
    """
    from cnnexp.core.machine import check_writable, packaged_folder

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        nearest = re.sub(r"^[^A-Za-z]+", "", re.sub(r"[^A-Za-z0-9_]+", "_", Path(name).name)).strip("_")
        advice = f"; did you mean {nearest!r}?" if nearest else ""
        raise UsageError(
            f"{name or repr(name)}: must be a letter, then letters, digits and _, as the name of a Python "
            f"module{advice}"
        )
    names = {file.stem for file in (packaged_folder("conf") / "experiment").glob("*.yaml")} | {"default"}
    if name in names:
        raise UsageError(f"{name}: is the name of an experiment of cnnexp; did you mean 'my_{name}'?")
    if folder.is_dir() and os.listdir(folder):
        raise UsageError(f"{name}: the folder exists and is not empty; choose another name")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{name}: exists and is not a folder; choose another name")
    check_writable(folder, name)


def _render(name: str) -> dict[Path, str]:
    """Return the text of each file of a project by its path in the folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    texts: dict[Path, str] = {}
    for template in environment.list_templates():
        path = template.removesuffix(".jinja").replace("NAME", name).replace("gitignore", ".gitignore")
        texts[Path(path)] = environment.get_template(template).render(name=name, question=QUESTION)
    return texts
