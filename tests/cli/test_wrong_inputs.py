"""Wrong input of every kind: exit code 2, one line that names the key or option, and nothing written."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnexp.config import SECTIONS, VARIANTS, RunConfig, parse
from cnnexp.core.errors import UsageError
from cnnexp.store.run_writer import RunWriter
from cnnexp.sweep.provenance import summary_of
from cnnexp.sweep.runner import SweepRunner
from tests.conftest import Configure, call_cnnexp

TABLE = Path(__file__).with_name("wrong_inputs.txt")
CONFIGURATIONS = {  # of a user, in the folder `my/experiment`
    "broken": "experiment: [\n",
    "list": "- 1\n- 2\n",
    "lost": "defaults:\n  - override /model: nope\nexperiment: lost\n",
    "key": "model:\n  kernel: 3\n",
    "empty": "hydra:\n  sweeper:\n    params:\n      seed: range(0)\n",
    "nowhere": "name: ${nowhere}\n",
    "latin": 'experiment: "caf\xe9"\n',
    "mine": "experiment: mine\nmodel:\n  features: [4]\ntrain: {steps: 5}\n",
}
MY_DATA = """
import numpy as np

def load(size=8):
    return {"images": np.zeros((10, size, size), np.uint8), "labels": np.arange(10) % 2}

def nothing():
    pass

def needs(path):
    pass
"""
INTERNALS = re.compile(  # names of parsers and libraries, and of classes of errors
    r"token recognition|mismatched input|no viable|extraneous input|pydantic|OmegaConf|DictConfig|full_key"
    r"|object_type|HYDRA_FULL_ERROR|Traceback|\w+(Error|Exception)\b|(?i:input should)|None\b"
)


def read_table() -> dict[str, list[tuple[str, str]]]:
    kinds: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            rows = kinds.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            command, _, expected = line.partition(" => ")
            rows.append((command, expected))
    return kinds


ROWS = read_table()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, configure: Configure) -> Path:
    """Make a folder with a sweep `results/s` and with files and folders that are no sweep."""
    folder = tmp_path_factory.mktemp("furnished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, tying in ((0, "shared"), (1, "local")):
            config = configure(name="s", seed=seed, model={"tying": tying}, tracking={"mode": "auto"})
            last = {"step": 5, "epoch": 1.0, "train/accuracy": 1.0, "test/accuracy": 0.5, "gap/accuracy": 0.5}
            writer = RunWriter(config)
            writer.log(last)
            writer.finish("finished", summary_of(config, last, status="finished", seconds=1.0))
    (folder / "afile").write_text("")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("")
    (folder / "my_data.py").write_text(MY_DATA)
    (folder / "classes" / "a").mkdir(parents=True)
    (folder / "classes" / "b").mkdir()
    np.savez(folder / "few.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 2)
    np.savez_compressed(folder / "packed.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 2)
    np.savez(folder / "wrong.npz", images=np.zeros((9, 8, 8), np.uint8), label=np.arange(9) % 2)
    (folder / "my" / "experiment").mkdir(parents=True)
    for name, text in CONFIGURATIONS.items():
        encoding = "latin-1" if name == "latin" else "utf-8"
        (folder / "my" / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\n{text}", encoding=encoding
        )
    return folder


@pytest.fixture
def working_folder(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a copy of the furnished folder, where nothing can be trained and no key is known."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TFDS_DATA_DIR", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setattr(SweepRunner, "lease_stacks", _refuse_to_train)
    return tmp_path


def _refuse_to_train(*_: object) -> None:
    raise AssertionError("accepted: it would have been trained")


def list_files(folder: Path) -> set[tuple[str, int]]:
    """List files with the time of their last change, and folders; not the bytecode of imported files."""
    return {
        (str(path.relative_to(folder)), path.lstat().st_mtime_ns * path.is_file())
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


# Each row takes Hydra a seventh of a second, so that the fast tests take every fifth one.
FAST_ROWS = slice(None, None, 5)


@pytest.mark.parametrize("kind", ROWS)
def test_some_wrong_inputs_of_every_kind_are_refused_in_one_line_and_write_nothing(
    kind: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_rows(ROWS[kind][FAST_ROWS], working_folder, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_all_other_wrong_inputs_are_refused_in_one_line_and_write_nothing(
    kind: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = ROWS[kind][FAST_ROWS]
    check_rows([row for row in ROWS[kind] if row not in checked], working_folder, capsys)


def check_rows(rows: list[tuple[str, str]], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, wrong = list_files(folder), []
    for row, expected in rows:
        words = [word.replace("LONG", 260 * "x") for word in shlex.split(row)]
        count = next((n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
        with pytest.MonkeyPatch.context() as patch:
            for variable in words[:count]:
                patch.setenv(*variable.split("=", 1))
            answer = call_or_catch(words[count:])
        out, error = capsys.readouterr()
        problems = [] if answer == 2 else [f"ended with {answer!r}"]
        problems += ["not one line"] * (error.count("\n") != 1)
        problems += ["something on stdout"] * bool(out and words[0] != "plan")
        problems += [f"not printed: {expected}"] * (expected not in error)
        problems += [f"internals: {match[0]}"] if (match := INTERNALS.search(error)) else []
        problems += ["something was written"] * (list_files(folder) != before)
        if problems:
            wrong.append(f"{row}\n    {'; '.join(problems)}\n    {error}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(rows)} are wrong", *wrong])


def call_or_catch(words: list[str]) -> object:
    """Carry out a command, and return its exit code, or what it raised instead."""
    try:
        return call_cnnexp(*words)
    except Exception as error:
        return error


def test_the_table_has_rows_of_every_command() -> None:
    commands = [shlex.split(row) for rows in ROWS.values() for row, _ in rows]
    assert len(commands) >= 230
    assert len({tuple(command) for command in commands}) == len(commands)
    named = {word for command in commands for word in command[:2]}
    assert named >= {"run", "plan", "show", "wandb-sweep", "report", "results", "watch", "compare", "sync"}
    assert named >= {"dashboard", "data", "completion", "new"}


NEVER: tuple[object, ...] = (-1, float("nan"), float("inf"), -float("inf"), [[["x"]]], {"a": {"b": 1}}, "")
SOMETIMES: tuple[object, ...] = (0, 1, 2.5, "word", True, None, [], [1, 2], ["word"], {"a": 1}, "on", 10**30)


def iterate_keys() -> Iterator[tuple[str, str, str]]:
    """Yield every section, each name that it may have, and every key that it has then."""
    for section, plain in SECTIONS.items():
        for name, variant in VARIANTS.get(section, {"": plain}).items():
            for key in variant.model_fields:
                yield section, name, key


@pytest.mark.slow
def test_every_key_refuses_impossible_values_in_one_line(composed: dict[str, dict[str, object]]) -> None:
    tried = refused = 0
    for section, name, key in iterate_keys():
        base = composed[f"{section}={name}"] if name else composed["experiment=null"]
        for value in (*NEVER, *SOMETIMES):
            inner = base[section]
            assert isinstance(inner, dict)
            tried += 1
            try:
                parse({**base, section: {**inner, key: value}})
            except UsageError as error:
                refused += 1
                text = str(error)
                assert f"{section}.{key}" in text or key in ("name", "epochs", "steps"), text
                assert "\n" not in text and len(text) < 500 and not INTERNALS.search(text), text
            else:
                takes_mapping = key.endswith("options") and isinstance(value, dict)
                assert takes_mapping or not any(value is never for never in NEVER), f"{section}.{key}={value}"
    print(f"{refused} of {tried} refused")
    assert tried > 3000 and refused > tried // 2


@pytest.mark.parametrize("key", [key for key in RunConfig.model_fields if key not in SECTIONS])
def test_every_top_level_key_refuses_impossible_values_in_one_line(
    key: str, composed: dict[str, dict[str, object]]
) -> None:
    for value in (*NEVER, None, True, 2.5, 10**30):
        if (key, value) == ("experiment", ""):
            continue
        with pytest.raises(UsageError, match=rf"^{key}=") as error:
            parse({**composed["experiment=null"], key: value})
        assert "\n" not in str(error.value) and not INTERNALS.search(str(error.value))


COMPLETED = {  # by the values that have no default
    "model=custom": ["model=custom", "model.file=a.py"],
    "data=tfds": ["data=mnist"],
    "data=npz": ["data=npz", "data.path=a.npz"],
    "data=folder": ["data=folder", "data.path=a"],
    "data=custom": ["data=custom", "data.file=a.py"],
}


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, object]]:
    """Compose every name of every section that has several, by Hydra."""
    from hydra import compose, initialize_config_dir

    from cnnexp.core.machine import packaged_folder
    from cnnexp.sweep.points import to_dict

    words = [f"{section}={name}" for section, names in VARIANTS.items() for name in names]
    with initialize_config_dir(str(packaged_folder("conf")), version_base="1.3"):
        configurations = {word: to_dict(compose("config", COMPLETED.get(word, [word]))) for word in words}
        configurations["experiment=null"] = to_dict(compose("config", []))
    return configurations
