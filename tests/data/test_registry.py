"""The registry of data sets: what an installed package adds has keys, checks and runs as the others have."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from cnnexp.config.data import DATA_VARIANTS, DataSection, register_section
from cnnexp.data.datasets import find_dataset

ROOT = Path(__file__).parents[2]


def test_every_section_of_a_data_set_has_a_class() -> None:
    for section in DATA_VARIANTS.values():
        assert find_dataset(section.model_construct()).data.__class__ is section


def test_names_of_data_sets_are_unique() -> None:
    class Digits(DataSection):
        name: Literal["digits"] = Field(default="digits")

    with pytest.raises(ValueError, match=r"Digits\.name=digits: is the name of another data set"):
        register_section(Digits)
    with pytest.raises(ValueError, match="must have a default"):
        register_section(DataSection)


def read_example() -> str:
    """Return the module in docs/data.md."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    return page.partition("# stripes.py\n")[2].partition("```")[0]


@pytest.mark.slow
def test_a_data_set_of_an_installed_package_is_run_and_its_keys_are_checked(tmp_path: Path) -> None:
    metadata = tmp_path / "site" / "stripes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "site" / "stripes.py").write_text(read_example(), encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[cnnexp]\nstripes = stripes\n")
    code = """
        import yaml
        from pathlib import Path
        from tests.conftest import call_cnnexp

        words = ["data.batch_size=4", "model.features=[2]", "train.steps=1"]
        assert call_cnnexp("run", "data=stripes", "data.side=4", *words) == 0
        (stored,) = Path("results/default").glob("*/config.yaml")
        assert yaml.safe_load(stored.read_text())["data"]["side"] == 4
        assert call_cnnexp("run", "data=stripes", "data.side=1") == 2
        assert call_cnnexp("run", "data=stripes", "--help") == 0
    """
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "WANDB_MODE": "disabled"},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    assert "data.side=1: must be at least 2 (got 1)" in result.stderr
    assert "The side of the images, in pixels." in result.stdout


def test_public_names_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, cnnexp; assert 'jax' not in sys.modules; "
        "from cnnexp import register_dataset, Dataset, DataSection, DataShape, Images, make_images; "
        "assert 'jax' in sys.modules and 'Dataset' in dir(cnnexp)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
