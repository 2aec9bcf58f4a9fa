"""Code of the user is searched in the working folder, and its checksum follows its file."""

import sys
from pathlib import Path

import pytest

from cnnexp.core.errors import UsageError
from cnnexp.core.user_code import compute_code_checksum, load_function, load_object
from tests.conftest import Configure


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"module_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text("number = 3\n\ndef double(x):\n    return 2 * x\n")
    return name


def test_functions_come_from_modules_and_files_of_the_working_folder(module: str) -> None:
    assert load_function("key", f"{module}:double")(2) == 4
    assert load_function("key", f"./{module}.py:double")(2) == 4
    assert load_object("key", f"{module}:number") == 3
    assert load_function("key", "json.encoder:JSONEncoder").__name__ == "JSONEncoder"


def test_files_of_the_working_folder_do_not_replace_packages(tmp_path: Path, module: str) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit\n")
    sys.modules.pop("colorsys", None)
    assert callable(load_function("key", "colorsys:rgb_to_hsv"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere:f", "key=nowhere:f: there is no module nowhere in .* or among the installed packages"),
        ("nowhere.py:f", "key=nowhere.py:f: there is no file .*/nowhere.py"),
        ("broken:f", "key=broken:f: broken cannot be imported .line 1: SyntaxError: invalid syntax"),
        ("lacking:f", "key=lacking:f: lacking imports no_such_package, which is not installed"),
        ("json:dump2", "key=json:dump2: json defines no dump2; did you mean 'dump'"),
        ("json:decoder", "key=json:decoder: must be a function .got module"),
        ("json:", "key=json:: must be MODULE:FUNCTION or FILE.py:FUNCTION"),
    ],
)
def test_code_that_cannot_be_imported_is_refused_in_a_line(
    tmp_path: Path, module: str, path: str, message: str
) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    with pytest.raises(UsageError, match=message):
        load_function("key", path)


def test_checksum_changes_with_the_file_alone(tmp_path: Path, module: str) -> None:
    names = [f"{module}:double", "adam"]
    checksum = compute_code_checksum(names)
    assert checksum is not None
    assert checksum == compute_code_checksum([f"{module}.py:number"])
    (tmp_path / f"{module}.py").write_text("number = 4\n")
    assert compute_code_checksum(names) != checksum
    assert compute_code_checksum(["adam"]) is compute_code_checksum(["nowhere:f"]) is None


def test_changed_code_is_another_run_and_a_stored_run_keeps_its_id(
    tmp_path: Path, module: str, configure: Configure
) -> None:
    before = configure(optim={"name": f"{module}:double"})
    (tmp_path / f"{module}.py").write_text("number = 5\n")
    after = configure(optim={"name": f"{module}:double"})
    assert before.run_id != after.run_id
    assert configure(**before.model_dump()).run_id == before.run_id
