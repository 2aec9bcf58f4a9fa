#!/usr/bin/env python3
"""Print the files whose tests the changed files can affect, one per line: scripts/changed_tests.py

`scripts/test --changed` runs them. Changed are the files that differ from the merge base with main, and new
ones. What is selected, and why, is printed on stderr. Without output, no test is affected.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = ("tests", "cnnexp")  # pytest's `testpaths`
# Files on which every test depends: configuration, the environment, and fixtures.
COMMON = re.compile(
    r"(conf|hydra_plugins|tests/fakes)/|(.*/)?conftest\.py$|pyproject\.toml$|requirements\.lock$"
)
LOADED_BY_PATH = ("scripts", "experiments")  # folders of Python files that are not packages
MODULE_IN_STRING = re.compile(r"""["'](cnnexp(?:\.\w+)+)""")
IMPORT = re.compile(r"^\s*(?:from|import) (cnnexp[\w.]*)", re.MULTILINE)
CONFTEST = "tests.conftest"


class Dependencies:
    """The modules of `cnnexp` and `tests`, and what each depends on.

    Beside imports, a module depends on modules that it names in strings, as the command line does, on the
    modules that its package imports by `pkgutil`, and on the packages that it lies in. Of the fixtures in
    `tests/conftest.py`, which reach all of the code, a test depends only on those that it names.
    """

    def __init__(self, root: Path = ROOT):
        self.root = root
        self.graph = grimp.build_graph("cnnexp", "tests", cache_dir=None, exclude_type_checking_imports=True)
        self.files = {self._find_file(module): module for module in self.graph.modules}
        self._texts = {module: read(root / file) for file, module in self.files.items()}
        self._scripts = {
            file.stem: str(file.relative_to(root))
            for folder in LOADED_BY_PATH
            for file in sorted((root / folder).rglob("*.py"))
        }
        self._exports = dict(re.findall(r'"(\w+)": "(cnnexp[\w.]+)"', self._texts["cnnexp"]))
        self._add_scripts()
        for module, text in self._texts.items():
            for other in self._list_hidden(module, text):
                self._add(module, other)

    def _find_file(self, module: str) -> str:
        path = module.replace(".", "/")
        return f"{path}/__init__.py" if (self.root / path).is_dir() else f"{path}.py"

    def _add(self, module: str, other: str) -> None:
        if module != other:
            self.graph.add_import(importer=module, imported=other)

    def _add_scripts(self) -> None:
        for file in self._scripts.values():
            self.graph.add_module(file)
            for name in IMPORT.findall(read(self.root / file)):
                self._add(file, self._resolve(name))

    def _resolve(self, name: str) -> str:
        """Return the module of a dotted name, whose last parts may be attributes."""
        while name not in self._texts:
            name = name.rpartition(".")[0]
        return name

    def _list_hidden(self, module: str, text: str) -> Iterator[str]:
        """List what a module depends on beside its imports."""
        if package := module.rpartition(".")[0]:
            yield package
        if module == CONFTEST:
            return
        if module != "cnnexp":  # which imports what it exports at first use
            yield from self._list_named(text)
        if "cnnexp" in self.graph.find_modules_directly_imported_by(module):
            names = re.findall(r"\w+", text)
            dynamic = "cnnexp.__all__" in text
            yield from (target for name, target in self._exports.items() if dynamic or name in names)
        if module.startswith("tests."):
            yield from self._list_of_tests(module, text)

    def _list_named(self, text: str) -> Iterator[str]:
        """List the modules that a text names in strings, and those of the packages that it searches."""
        named = [self._resolve(name) for name in MODULE_IN_STRING.findall(text)]
        yield from named
        if re.search(r'"-m", "cnnexp"', text):
            yield "cnnexp.__main__"
        if "iter_modules(" in text and "pkgutil" in text:
            for package in (*named, *IMPORT.findall(text)):
                if package in self._texts:
                    yield from self.graph.find_children(package)

    def _list_of_tests(self, module: str, text: str) -> Iterator[str]:
        """List the scripts that a module of tests names, and what it needs of `tests/conftest.py`."""
        words = set(re.findall(r"""(?:["'=/]|^\s*(?:import|from) )(\w+)""", text, re.MULTILINE))
        for stem, file in self._scripts.items():
            if stem in words or names_folder(text, file):
                yield file
        conftest = f"{module.rpartition('.')[0]}.conftest"  # whose fixtures are not imported
        if conftest in self._texts and conftest not in (module, CONFTEST):
            yield conftest
        if self.graph.direct_import_exists(importer=module, imported=CONFTEST):
            self.graph.remove_import(importer=module, imported=CONFTEST)
        names = list_names(ast.parse(text))
        for name in names & self._fixtures.keys():
            yield from self._fixtures[name]

    @cached_property
    def _fixtures(self) -> dict[str, set[str]]:
        """The modules that each function, fixture and constant of `tests/conftest.py` needs."""
        tree = ast.parse(self._texts[CONFTEST])
        imported: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    imported[alias.asname or alias.name] = (
                        {self._resolve(f"{node.module}.{alias.name}")} & {*self._texts}
                        if str(node.module).startswith(("cnnexp", "tests"))
                        else set()
                    )
        uses: dict[str, set[str]] = {}
        modules: dict[str, set[str]] = {}
        for node in tree.body:
            for name in list_defined(node):
                uses[name] = list_names(node) - {name}
                strings = self._list_named(ast.unparse(node).replace("'", '"'))
                modules[name] = set(strings).union(*(imported.get(used, ()) for used in uses[name]))
        return {name: set().union(*(modules[used] for used in follow(name, uses))) for name in uses}

    def explain(self, changed: str) -> dict[str, str]:
        """Return the test files that a changed file can affect, each with the chain of its imports."""
        reasons: dict[str, str] = {}
        for start in self._find_starts(changed):
            for module in sorted({start, *self.graph.find_downstream_modules(start)} & self._texts.keys()):
                if self._has_tests(module):
                    why = list(self._find_chain(module, start))[1:]
                    why += [changed] if start not in (changed, self.files.get(changed)) else []
                    reasons.setdefault(self._find_file(module), " -> ".join(why) or "changed itself")
        return reasons

    def _find_chain(self, module: str, start: str) -> Sequence[str]:
        if module == start:
            return [module]
        return self.graph.find_shortest_chain(importer=module, imported=start) or [module, start]

    def _has_tests(self, module: str) -> bool:
        name = module.rpartition(".")[2]
        return name.startswith("test_") if module.startswith("tests.") else ">>> " in self._texts[module]

    def _find_starts(self, changed: str) -> Iterable[str]:
        """List the modules that depend on a file at first hand, or that are this file."""
        if changed in self.files or changed in self._scripts.values():
            return [self.files.get(changed, changed), *self._list_mentions(changed)]
        parts = Path(changed).parts
        if parts[0] == "cnnexp":  # a template, or a file that was deleted: its package
            package = next(p for p in map(str, Path(changed).parents) if f"{p}/__init__.py" in self.files)
            return [
                self.files[f"{package}/__init__.py"],
                *self.graph.find_descendants(package.replace("/", ".")),
            ]
        return self._list_mentions(changed)

    def _list_mentions(self, changed: str) -> list[str]:
        """List the tests that name a file, its folder or its kind."""
        path = Path(changed)
        named = "|".join(map(re.escape, (changed, path.name, f"*{path.suffix}" if path.suffix else changed)))
        pattern = re.compile(rf"""["'/](?:{named})["'/]""")
        tests = [(name, text) for name, text in self._texts.items() if name.startswith("tests.")]
        return [name for name, text in tests if pattern.search(text) or names_folder(text, changed)]


def names_folder(text: str, file: str) -> bool:
    """Return whether a string in code is a folder of a file, such as "docs"."""
    folders = {*map(str, Path(file).parents)} - {".", "tests", "cnnexp", "scripts"}
    return any(f'"{folder}"' in text for folder in folders)


def read(path: Path) -> str:
    """Read a file as text."""
    return path.read_text(encoding="utf-8")


def list_names(tree: ast.AST) -> set[str]:
    """List the names that code uses: variables, arguments, imported names, and strings that are names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # `usefixtures("run")`
    return names


def list_defined(node: ast.stmt) -> list[str]:
    """List the names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def follow(name: str, uses: dict[str, set[str]]) -> set[str]:
    """Return a name, and the names that it uses directly or through others."""
    reached, new = set(), {name}
    while new:
        reached |= new
        new = {used for each in new for used in uses[each] if used in uses} - reached
    return reached


def list_changed_files() -> list[str]:
    """List the files that differ from the merge base with main, and the new ones that git does not ignore."""
    for main in ("main", "origin/main"):
        base = _git("merge-base", "HEAD", main)
        if base is not None:
            break
    else:
        sys.exit("scripts/test --changed: no branch main to compare with; run: scripts/test")
    listed = (
        _git("diff", "--name-only", "-z", base.strip()),
        _git("ls-files", "-z", "--others", "--exclude-standard"),
    )
    return sorted({name for names in listed for name in (names or "").split("\0") if name})


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    return None if done.returncode else done.stdout


def select_tests(changed: Collection[str], dependencies: Dependencies | None = None) -> dict[str, str]:
    """Select the files whose tests changed files can affect.

    Args:
        changed: Paths below the root of the repository.
        dependencies: What modules depend on; None reads it from the code.

    Returns:
        For each file of tests, or folder if all tests are selected, the reason.
    """
    for name in changed:
        if COMMON.match(name):
            return dict.fromkeys(EVERYTHING, f"all tests depend on {name}")
    known = dependencies or Dependencies()
    reasons: dict[str, str] = {}
    for name in changed:
        reasons = known.explain(name) | reasons
    reasons |= {name: "changed itself" for name in changed if name in reasons}
    return dict(sorted(reasons.items()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # where the packages are read from
    files = list_changed_files()
    print(f"changed: {', '.join(files) or 'nothing'}", file=sys.stderr)
    selected = select_tests(files)
    for test, reason in selected.items():
        print(f"{test}: {reason}", file=sys.stderr)
        print(test)
    if not selected:
        print("no test depends on a changed file", file=sys.stderr)
