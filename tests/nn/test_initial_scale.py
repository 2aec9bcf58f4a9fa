"""The scale at which networks of each tying start, as docs/statistics.md describes it."""

import importlib.util
from pathlib import Path

import jax
import pytest

from cnnexp.models.spec import specify_network
from tests.conftest import Configure

SCRIPT = Path(__file__).parents[2] / "scripts/check/initial_scale.py"


def test_outputs_of_the_first_layer_have_one_scale_for_all_tyings_and_those_of_the_head_do_not(
    configure: Configure,
) -> None:
    """The maximum over a pool of independent kernels is larger than that over one kernel."""
    spec = importlib.util.spec_from_file_location("check_initial_scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    noise = jax.random.normal(jax.random.key(0), (64, 4, 4, 1))
    images = jax.image.resize(noise, (64, 10, 10, 1), "linear")  # near pixels have similar values
    images = (images - images.mean()) / images.std()

    scales = {}
    for tying in ("shared", "local", "dense"):
        wide = {"features": [8, 16], "kernel_size": [5, 3], "padding": "CIRCULAR"}
        config = configure(model={"tying": tying, **wide})
        scales[tying] = script.scales(specify_network(config), images, 4)
    for tying in ("local", "dense"):
        assert scales[tying]["conv_0"] / scales["shared"]["conv_0"] == pytest.approx(1, abs=0.06)
        assert 1.15 < scales[tying]["head"] / scales["shared"]["head"] < 1.7
