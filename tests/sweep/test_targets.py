"""Targets of compilation: their names, and what must be installed."""

import pytest

from cnnexp.core.errors import UsageError
from cnnexp.sweep import targets
from cnnexp.sweep.targets import CompiledProgram, StackJob, Target, compile_for
from tests.conftest import Configure


@pytest.mark.parametrize(
    ("typed", "kind", "shape"),
    [
        ("v5e", "v5e", (1, 1)),
        ("v5e:2x2", "v5e", (2, 2)),
        ("v5p:2x2x1", "v5p", (2, 2, 1)),
        ("h100", "h100", (1,)),
    ],
)
def test_a_target_is_a_chip_or_a_grid_of_chips(typed: str, kind: str, shape: tuple[int, ...]) -> None:
    target = Target.parse(typed)
    assert target == Target(kind, shape) == Target.parse(str(target))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("v5", "--target v5: did you mean 'v5p'? allowed: v5e, v5p, v6e, h100"),
        ("v5e:2", "--target v5e:2: must be v5e, or the shape of its grid as in v5e:2x2"),
        ("v5p:0x2x1", "--target v5p:0x2x1: must be v5p, or the shape of its grid as in v5p:2x2x1"),
        ("h100:", "--target h100:: must be h100, or the shape of its grid as in h100:4"),
    ],
)
def test_what_is_no_target_is_refused(typed: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Target.parse(typed)
    assert str(error.value) == message


def test_missing_compilers_are_named_with_their_extra(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"--target v5e:1x1: needs .* pip install 'cnnexp\[targets\]'"):
        list(compile_for(Target.parse("v5e"), [StackJob(config=configure(), runs=1)]))


@pytest.mark.slow
def test_every_program_compiles_for_a_gpu_that_this_machine_lacks(configure: Configure) -> None:
    pytest.importorskip("jax_cuda13_plugin")
    job = StackJob(config=configure(), runs=2)
    compiled = {result.name: result for result in compile_for(Target.parse("h100"), [job])}
    assert set(compiled) == {"init", "train", "evaluate", "inspect"}
    assert all(result.cost and result.cost.peak_bytes > 0 for result in compiled.values())
    assert CompiledProgram(job=0, name="train", error="RESOURCE_EXHAUSTED: …").is_too_large
