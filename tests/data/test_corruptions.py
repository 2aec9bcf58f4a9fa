"""Corruptions have the configured strength, apply to the configured split, and are drawn once per image."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnnexp.config import parse
from cnnexp.config.data import corruption_summary
from cnnexp.core.errors import UsageError
from cnnexp.data.corruptions import Corruptions, CorruptionStrengths, reduce_resolution
from cnnexp.data.corruptions.moves import block_permutation
from cnnexp.data.images import Normalisation
from cnnexp.data.shapes import check_corruptions
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training.loop import StackTrainer
from tests.conftest import Configure, load_once

RAW = Normalisation(np.zeros(1, np.float32), np.ones(1, np.float32))  # leaves pixels as they are
IMAGE_IDS = np.arange(400, dtype=np.int32)
PIXELS = np.random.default_rng(0).integers(1, 255, (400, 8, 6, 1)).astype(np.uint8)


def make_corruptions(configure: Configure, **changes: Any) -> Corruptions:
    data = configure(data=changes).data
    return Corruptions(data, jax.random.key(0), CorruptionStrengths.from_config(data), RAW)


def corrupt_pixels(
    configure: Configure, *, split: str = "train", step: int | None = None, **changes: Any
) -> np.ndarray:
    corruptions = make_corruptions(configure, **changes)
    step_array = None if step is None else jnp.int32(step)
    return np.asarray(corruptions.images(PIXELS, IMAGE_IDS, split=split, step=step_array))


EACH_CORRUPTION: list[dict[str, Any]] = [
    {"resolution": 3},
    {"image_noise": 0.5},
    {"shift": 2},
    {"permutation": "fixed"},
    {"permutation": "per_image", "block": 2},
    {"pixel_noise": 0.2},
    {"salt_and_pepper": 0.3},
]


@pytest.mark.parametrize("corruption", EACH_CORRUPTION, ids=str)
def test_only_the_configured_split_is_corrupted(configure: Configure, corruption: dict[str, Any]) -> None:
    for corrupt, split in product(("train", "test", "both"), ("train", "test")):
        changed = (corrupt_pixels(configure, split=split, corrupt=corrupt, **corruption) != PIXELS).any()
        assert changed == (corrupt in (split, "both"))


@pytest.mark.parametrize("corruption", EACH_CORRUPTION, ids=str)
def test_a_corruption_depends_on_the_image_alone_not_on_its_batch(
    configure: Configure, corruption: dict[str, Any]
) -> None:
    corruptions = make_corruptions(configure, **corruption)
    whole = np.asarray(corruptions.images(PIXELS, IMAGE_IDS, split="train"))
    part = np.asarray(corruptions.images(PIXELS[7:19], IMAGE_IDS[7:19], split="train"))
    assert part == pytest.approx(whole[7:19], abs=1e-4)


def test_pixel_noise_has_the_configured_deviation(configure: Configure) -> None:
    noise = corrupt_pixels(configure, pixel_noise=0.1) - PIXELS
    assert noise.std() == pytest.approx(25.5, rel=0.03)
    assert abs(noise.mean()) < 1


def test_salt_and_pepper_replace_the_configured_fraction_of_pixels(configure: Configure) -> None:
    salted = corrupt_pixels(configure, salt_and_pepper=0.3)
    assert (salted == 0).mean() == pytest.approx(0.15, abs=0.01)
    assert (salted == 255).mean() == pytest.approx(0.15, abs=0.01)
    assert (salted == PIXELS)[(salted > 0) & (salted < 255)].all()


def test_images_replaced_by_noise_have_the_training_moments(configure: Configure) -> None:
    data = configure(data={"image_noise": 0.25}).data
    normalisation = Normalisation(np.float32([100.0]), np.float32([20.0]))
    corruptions = Corruptions(data, jax.random.key(0), CorruptionStrengths.from_config(data), normalisation)
    shown = np.asarray(corruptions.images(PIXELS, IMAGE_IDS, split="train"))
    replaced = (np.abs(shown * 20 + 100 - PIXELS) > 1e-2).any((1, 2, 3))
    assert replaced.mean() == pytest.approx(0.25, abs=0.06)
    assert shown[replaced].mean() == pytest.approx(0, abs=0.05)
    assert shown[replaced].std() == pytest.approx(1, abs=0.05)


def test_label_noise_replaces_the_configured_fraction_evenly_and_nested(configure: Configure) -> None:
    image_ids, labels = np.arange(2000), np.arange(2000) % 10
    few, many = (
        np.asarray(make_corruptions(configure, label_noise=fraction).labels(labels, image_ids, 10))
        for fraction in (0.1, 0.4)
    )
    assert (many != labels).mean() == pytest.approx(0.4, abs=0.04)
    assert ((few != labels) <= (many != labels)).all()
    wrong = ((many - labels) % 10)[many != labels]
    assert stats.chisquare(np.bincount(wrong, minlength=10)[1:]).pvalue > 1e-3
    several = np.eye(10, dtype=np.int32)[labels]
    flipped = (
        np.asarray(make_corruptions(configure, label_noise=0.4).labels(several, image_ids, 10)) != several
    )
    assert flipped.mean() == pytest.approx(0.4, abs=0.02)


def test_shifts_are_uniform_and_pad_with_zeros(configure: Configure) -> None:
    moved = corrupt_pixels(configure, shift=1)
    padded = np.pad(PIXELS[..., 0], ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    windows = {(y, x): padded[:, y : y + 8, x : x + 6] for y in range(3) for x in range(3)}
    hits = np.stack([(moved[..., 0] == window).all((1, 2)) for window in windows.values()])
    assert (hits.sum(0) == 1).all()
    assert stats.chisquare(hits.sum(1)).pvalue > 1e-3


def test_augmentation_changes_with_the_step_and_is_absent_in_evaluation(configure: Configure) -> None:
    assert (corrupt_pixels(configure, crop=2, flip=True) == PIXELS).all()
    first, again, second = (corrupt_pixels(configure, crop=2, flip=True, step=step) for step in (0, 0, 1))
    assert (first == again).all() and (first != second).any()
    flipped = corrupt_pixels(configure, flip=True, step=0)
    mirrored = (flipped == PIXELS[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == PIXELS).all((1, 2, 3)) | mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("height", "width", "block"), [(8, 8, 1), (8, 8, 2), (8, 8, 4), (8, 8, 8), (6, 1, 3)]
)
def test_block_permutation_moves_whole_blocks(height: int, width: int, block: int) -> None:
    sent = block_permutation(jax.random.key(1), jnp.arange(30), jnp.int32(block), height, width)
    images = np.asarray(sent).reshape(30, height, width)
    across = min(block, width)
    for image in images:
        assert sorted(image.ravel()) == list(range(height * width))
        for top, left in product(range(0, height, block), range(0, width, across)):
            cut = image[top : top + block, left : left + across]
            assert (cut - cut[0, 0] == np.arange(block)[:, None] * width + np.arange(across)).all()
            assert cut[0, 0] // width % block == 0 and cut[0, 0] % width % across == 0
    if block < height:
        assert len({bytes(image.copy()) for image in images}) > 1


def test_a_fixed_permutation_is_the_same_for_all_images_and_loses_no_pixel(
    configure: Configure,
) -> None:
    train = corrupt_pixels(configure, permutation="fixed")
    test = np.asarray(
        make_corruptions(configure, permutation="fixed").images(PIXELS, -1 - IMAGE_IDS, split="test")
    )
    assert (train == test).all()
    assert (np.sort(train.reshape(400, -1)) == np.sort(PIXELS.reshape(400, -1))).all()
    per_image = corrupt_pixels(configure, permutation="per_image")
    copies = np.broadcast_to(PIXELS[:1], PIXELS.shape)
    corruptions = make_corruptions(configure, permutation="per_image")
    permuted = np.asarray(corruptions.images(copies, IMAGE_IDS, split="train"))
    assert len({bytes(image) for image in permuted}) > 390
    assert (per_image != train).any()


@pytest.mark.parametrize("resolution", [1, 2, 3, 4, 5, 8])
def test_reduced_images_are_means_over_areas(resolution: int) -> None:
    images = PIXELS[:4, :, :, :].astype(np.float32)[:, :, :4]
    reduced = np.asarray(reduce_resolution(jnp.asarray(images), jnp.int32(resolution)))
    assert reduced.mean((1, 2)) == pytest.approx(images.mean((1, 2)), rel=1e-5) or resolution in (3, 5)
    if resolution == 8:
        assert reduced == pytest.approx(images, rel=1e-5)
    if resolution == 4:
        expected = images.reshape(4, 4, 2, 4, 1).mean(2).repeat(2, axis=1)
        assert reduced[..., 0] == pytest.approx(expected[..., 0], rel=1e-5)
    assert len(np.unique(reduced[0, :, 0, 0])) <= resolution


def test_runs_of_several_strengths_have_one_program_and_the_losses_of_single_runs(
    configure: Configure,
) -> None:
    def corrupted(noise: float, side: int, split: str) -> Any:
        data = {"pixel_noise": noise, "permutation": "fixed", "block": side, "corrupt": split, "shift": side}
        linear = {"name": "mlp", "hidden": []}  # compiles fast
        return parse(configure(data=data).model_dump() | {"model": linear})

    configs = [corrupted(0.1, 1, "both"), corrupted(0.5, 2, "train"), corrupted(0.3, 5, "test")]
    assert len({make_program_key(config) for config in configs}) == 1
    images = load_once(configs[0].data)

    def losses(runs: list[Any]) -> list[float]:
        rows = list(StackTrainer(runs[0], images).train(runs))[-1].rows or []
        return [row["test/loss"] for row in rows]

    stacked = losses(configs)
    assert losses(configs[1:2]) == pytest.approx(stacked[1:2], abs=1e-5)
    assert len(set(stacked)) == 3


def test_the_summary_lists_the_corruptions_of_each_split(configure: Configure) -> None:
    data = configure(data={"pixel_noise": 0.2, "label_noise": 0.1, "corrupt": "test", "flip": True}).data
    assert corruption_summary(data) == {
        "corruption/test/pixel_noise": 0.2,
        "corruption/train/label_noise": 0.1,
        "corruption/train/flip": True,
    }
    assert corruption_summary(configure().data) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"permutation": "fixed", "block": 3},
            "data.block=3: blocks must tile 10x10 images; allowed: 1, 2, 5, 10",
        ),
        ({"block": 2}, "data.block=2: must be 1 with data.permutation=none, which moves no block"),
        ({"shift": 10}, "data.shift=10: must be at most 9 for 10x10 images"),
        ({"resolution": 11}, "data.resolution=11: must be at most 10 for 10x10 images"),
    ],
)
def test_corruptions_too_large_for_the_image_are_refused(
    configure: Configure, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        check_corruptions(configure(data=changes).data)
    assert str(refusal.value) == message
