"""Corruptions by name: those of the package, and functions of the user."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cnnexp.config import RunConfig
from cnnexp.config.data import corruption_summary
from cnnexp.core.errors import UsageError
from cnnexp.data.shapes import check_corruptions
from cnnexp.sweep.program_key import make_program_key
from tests.conftest import Configure
from tests.data.test_corruptions import IMAGE_IDS, PIXELS, corrupt_pixels, make_corruptions

HAZE = """
import jax

def haze(image, strength, *, key, level=1.0, deviation=0.0):
    noise = deviation * jax.random.normal(key, image.shape)
    return (1 - strength) * image + strength * (level + noise)

def grey(image, strength):
    return image.mean()

def broken(image, strength):
    return image.undefined
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a file of the user in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "haze.py").write_text(HAZE, encoding="utf-8")
    return "haze.py"


@pytest.mark.parametrize("corrupt", ["train", "test", "both"])
def test_a_corruption_of_the_user_reaches_the_splits_that_are_named(
    configure: Configure, user_code: str, corrupt: str
) -> None:
    keys = {"corruption": f"{user_code}:haze", "corruption_strength": 0.25, "corrupt": corrupt}
    corruptions = make_corruptions(configure, **keys, corruption_options={"level": 0.5})
    for split in ("train", "test"):
        corrupted = np.asarray(corruptions.images(PIXELS, IMAGE_IDS, split=split))
        hazy = 0.75 * PIXELS + 0.25 * 0.5 * 255
        assert corrupted == pytest.approx(hazy if corrupt in (split, "both") else PIXELS, rel=1e-5)


def test_a_random_corruption_of_the_user_is_drawn_once_for_each_image(
    configure: Configure, user_code: str
) -> None:
    keys = {"corruption": f"{user_code}:haze", "corruption_strength": 1.0}
    corruptions = make_corruptions(configure, **keys, corruption_options={"deviation": 1.0})
    whole = np.asarray(corruptions.images(PIXELS, IMAGE_IDS, split="train"))
    part = np.asarray(corruptions.images(PIXELS[5:9], IMAGE_IDS[5:9], split="train", step=jnp.int32(3)))
    assert part == pytest.approx(whole[5:9], abs=1e-3)
    assert len({image.tobytes() for image in whole}) == len(whole)


def test_runs_of_several_strengths_of_a_function_have_one_program_and_changed_code_is_another_run(
    configure: Configure, user_code: str
) -> None:
    def corrupted(strength: float) -> RunConfig:
        keys = {"corruption": f"{user_code}:haze", "corruption_strength": strength}
        return configure(data=keys)

    assert make_program_key(corrupted(0.1)) == make_program_key(corrupted(0.9))
    assert make_program_key(corrupted(0.1)) != make_program_key(corrupted(0.0))
    assert corruption_summary(corrupted(0.1).data) == {
        "corruption/train/haze": 0.1,
        "corruption/test/haze": 0.1,
    }
    first = corrupted(0.1).run_id
    Path(user_code).write_text(HAZE + "\n", encoding="utf-8")
    assert corrupted(0.1).run_id != first
    assert "corruption" not in configure().identity()["data"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"corruption": "haze.py:grey"}, "must return an image of the shape (10, 10, 1) (got ())"),
        ({"corruption": "haze.py:broken"}, "fails on 10x10x1 images (AttributeError: "),
        ({"corruption_options": {"levle": 1}}, "data.corruption_options.levle: no such option of haze; did"),
        ({"corruption_options": {"key": 1}}, "data.corruption_options.key: no such option of haze"),
    ],
)
def test_functions_that_do_not_corrupt_images_are_refused(
    configure: Configure, user_code: str, keys: dict[str, Any], message: str
) -> None:
    data = {"corruption": f"{user_code}:haze", "corruption_strength": 0.5, **keys}
    with pytest.raises(UsageError) as refusal:
        check_corruptions(configure(data=data).data)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_blurred_images_are_convolved_with_a_gaussian(configure: Configure) -> None:
    blurred = corrupt_pixels(configure, corruption="blur", corruption_strength=0.5)
    expected = gaussian_filter(PIXELS.astype(float), 0.5, axes=(1, 2), truncate=8)
    assert blurred[:, 3:-3, 3:-3] == pytest.approx(expected[:, 3:-3, 3:-3], abs=0.05)
    flat = make_corruptions(configure, corruption="blur", corruption_strength=2.0)
    assert np.asarray(flat.images(PIXELS * 0 + 7, IMAGE_IDS, split="train")) == pytest.approx(7, rel=1e-5)


def test_an_occlusion_covers_its_fraction_of_the_area_with_the_mean(configure: Configure) -> None:
    covered = corrupt_pixels(configure, corruption="occlusion", corruption_strength=0.25)
    height, width = PIXELS.shape[1:3]
    for image, original in zip(covered[:50], PIXELS[:50], strict=True):
        changed = np.abs(image - original).max(2) > 1e-2
        rows, columns = changed.any(1), changed.any(0)
        assert 0 < changed.sum() <= round(height / 2) * round(width / 2)
        assert np.flatnonzero(rows).size <= round(height / 2) and np.ptp(np.flatnonzero(columns)) < width / 2
        assert image[changed] == pytest.approx(
            np.broadcast_to(original.mean((0, 1)), image[changed].shape), rel=1e-4
        )
