"""At which scale nets of each tying start: what docs/statistics.md says of it."""

import importlib.util
from pathlib import Path

import jax
import pytest

from cnnexp.models.spec import specify_network
from tests.conftest import Configure

SCRIPT = Path(__file__).parents[2] / "scripts/check/initial_scale.py"


def test_the_first_layer_starts_at_one_scale_and_the_head_does_not(configure: Configure) -> None:
    """The maximum over a pool of independent kernels is larger than that over one kernel."""
    spec = importlib.util.spec_from_file_location("check_initial_scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    noise = jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    images = jax.image.resize(noise, (64, 10, 10, 1), "linear")  # near pixels are alike
    images = (images - images.mean()) / images.std()

    found = {}
    for tying in ("shared", "local", "dense"):
        wide = {"features": [8, 16], "kernel_size": [5, 3], "padding": "CIRCULAR"}
        config = configure(model={"tying": tying, **wide})
        found[tying] = script.scales(specify_network(config), images, 4)
    for tying in ("local", "dense"):
        assert found[tying]["conv_0"] / found["shared"]["conv_0"] == pytest.approx(1, abs=0.06)
        assert 1.15 < found[tying]["head"] / found["shared"]["head"] < 1.7
