"""Every program of a run lowers for GPUs and TPUs on a machine that has neither, with nothing installed."""

from typing import Any

import jax
import pytest
from jax import export

from cnnexp.training import programs, stacking
from cnnexp.training.program_costs import StepForecast
from cnnexp.training.programs import list_programs
from tests.conftest import Configure

PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}
TYINGS = ("shared", "tiled(2)", "blocked(2)", "low_rank(2)", "local", "dense")


def lower_all(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, platform: str, **changes: Any
) -> dict[str, str]:
    """Lower the programs of a stack of two runs on one device for a platform, and return their text."""
    for module in (programs, stacking):
        monkeypatch.setattr(module, "mesh_platform", lambda _: platform)
    streams = changes.pop("streams", False)
    return {
        program.name: export.export(program.function, platforms=[PLATFORMS[platform]])(
            *program.arguments
        ).mlir_module()
        for program in list_programs(configure(**changes), 2, jax.devices()[:1], streams=streams)
    }


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_program_lowers_for_an_accelerator(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    # With `model.precision=float32`, convolutions of few channels are matrix products on TPU as well.
    lowered = lower_all(configure, monkeypatch, platform, model={"precision": "default"})
    assert set(lowered) == {"init", "train", "evaluate", "inspect"}
    has_convolutions = "stablehlo.convolution" in lowered["train"]  # on GPU, a stack has matrix products
    assert has_convolutions == (platform == "tpu")


def test_every_program_of_streamed_images_lowers_for_an_accelerator(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = lower_all(configure, monkeypatch, "tpu", streams=True, data={"validation_size": 20})
    splits = {f"evaluate {split}" for split in stacking.SPLITS}
    assert set(lowered) == {"init", "train", "inspect", *splits}


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group"])
@pytest.mark.parametrize("tying", TYINGS)
def test_every_tying_and_norm_lowers_for_an_accelerator(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tying: str, norm: str, platform: str
) -> None:
    dtype = "bfloat16" if norm == "batch" else None
    assert lower_all(configure, monkeypatch, platform, model={"tying": tying, "norm": norm, "dtype": dtype})


LOOPS = """
%region.1 (arg: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%x, %constant.1), direction=LT
}

%steps.1 (arg: (s32[], s32[])) -> pred[] {
  ROOT %lt = pred[] compare(%x, %y), direction=LT
}

%indices (p: s32[4]) -> s32[4] {
  ROOT %gather.1 = s32[4]{0} gather(%p, %q), offset_dims={}
}

%step (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"100"}
  %fusion.2 = s32[4]{0} fusion(%a), kind=kLoop, calls=%indices
  %cond = (f32[8]{0}) conditional(%p, %a, %b), branch_computations={%small, %large}
}

%small (arg: f32[8]) -> f32[8] {
  ROOT %fusion.3 = f32[8]{0} fusion(%a), calls=%f, backend_config={"estimated_cycles":"1"}
}

%large (arg: f32[8]) -> f32[8] {
  ROOT %fusion.4 = f32[8]{0} fusion(%a), calls=%f, backend_config={"estimated_cycles":"30"}
}

%run (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.5 = f32[8]{0} fusion(%a), calls=%f, backend_config={"estimated_cycles":"5000"}
  ROOT %while.1 = (s32[], f32[8]) while(%t), condition=%steps.1, body=%step
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %while.2 = (s32[], f32[8]) while(%t), condition=%region.1, body=%run
}
"""


def test_cycles_of_a_step_count_every_run_once_and_name_what_has_no_price() -> None:
    forecast = StepForecast(LOOPS)
    assert (forecast.cycles, forecast.not_priced) == (8 * (100 + 30), {"gather": 1})
    assert StepForecast(LOOPS.replace("estimated_cycles", "other")).cycles is None
