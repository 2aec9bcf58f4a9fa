"""The keys as they are explained: in the help of `cnnexp run`, and in docs/configuration.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnnexp.config import SECTIONS, VARIANTS, RunConfig
from cnnexp.config.describe import describe_keys
from tests.conftest import call_cnnexp

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    f"{section}={name}": schema
    for section, plain in SECTIONS.items()
    for name, schema in VARIANTS.get(section, {"": plain}).items()
}


def read_help(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "110")
    assert call_cnnexp("run", *words, "--help") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_has_an_explanation_in_sentences(name: str) -> None:
    for key in describe_keys(SCHEMAS[name]):
        assert re.match(r"[A-Z`].*[.?]$", key.explanation), f"{name}: {key.name}"
        assert key.allowed, f"{name}: {key.name}"


def test_help_has_every_key_of_the_chosen_groups_with_its_value_and_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = read_help(["model=mlp", "optim=sgd", "launcher=slurm"], monkeypatch, capsys)
    for section, name in (("model", "mlp"), ("data", "digits"), ("optim", ""), ("launcher", "slurm")):
        for key in describe_keys(SCHEMAS[f"{section}={name}"]):
            assert f"{section}.{key.name}=" in text
            assert key.explanation in re.sub(r"\s+", " ", text)
    assert "optim.learning_rate=0.05" in text  # the group's, not the schema's
    assert "  model.kernel_size=3 " not in text
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_experiment_with_its_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\n# Is it so?\nseed: 1\n")
    monkeypatch.chdir(tmp_path)
    text = read_help(["--config-dir", "my"], monkeypatch, capsys)
    assert "  mine: Is it so?\n" in text
    for file in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert re.search(rf"^  {file.stem}: [A-Z][^=]*[?.]$", text, re.MULTILINE), file.stem


def test_the_defaults_of_hydra_are_those_of_the_schema() -> None:
    from hydra import compose, initialize_config_dir

    from cnnexp.sweep.points import to_dict

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values = to_dict(compose("config", []))
    expected = RunConfig.model_fields["results_dir"].default
    assert values["results_dir"] == expected
    for name in (
        "model=simple_cnn",
        "data=digits",
        "optim=",
        "train=",
        "sweep=",
        "tracking=",
        "launcher=local",
    ):
        section = name.partition("=")[0]
        defaults = {key: field.default for key, field in SCHEMAS[name].model_fields.items()}
        assert values[section] == defaults


def test_the_page_of_all_keys_is_what_its_script_writes() -> None:
    code = "import configuration; print(configuration.render(), end='')"
    path = os.pathsep.join([str(ROOT / "scripts" / "docs"), str(ROOT)])
    written = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == written, (
        "stale; run: scripts/docs/configuration.py"
    )
