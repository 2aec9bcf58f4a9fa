"""What is done to images: as much as was asked for, to the images it was asked for, each image its own."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnnexp.config.data import corruption_summary
from cnnexp.core.errors import UsageError
from cnnexp.data.corruptions import Corruptions, CorruptionStrengths, block_permutation, reduce_resolution
from cnnexp.data.images import Normalisation
from cnnexp.data.loading import load_images
from cnnexp.data.shapes import check_corruptions
from cnnexp.sweep.plan import shape_of_program
from cnnexp.training.loop import StackTrainer
from tests.conftest import Configure

RAW = Normalisation(np.zeros(1, np.float32), np.ones(1, np.float32))  # what comes out is in units of pixels
IDENTITY = np.arange(400, dtype=np.int32)
PIXELS = np.random.default_rng(0).integers(1, 255, (400, 8, 6, 1)).astype(np.uint8)


def done(configure: Configure, **changes: Any) -> Corruptions:
    data = configure(data=changes).data
    return Corruptions(data, jax.random.key(0), CorruptionStrengths.from_config(data), RAW)


def seen(
    configure: Configure, *, split: str = "train", step: int | None = None, **changes: Any
) -> np.ndarray:
    at = None if step is None else np.int32(step)[None][0]
    steps = None if at is None else jnp.int32(at)
    return np.asarray(done(configure, **changes).images(PIXELS, IDENTITY, split=split, step=steps))


EVERY: list[dict[str, Any]] = [
    {"resolution": 3},
    {"image_noise": 0.5},
    {"shift": 2},
    {"permutation": "fixed"},
    {"permutation": "per_image", "block": 2},
    {"pixel_noise": 0.2},
    {"salt_and_pepper": 0.3},
]


@pytest.mark.parametrize("what", EVERY, ids=str)
def test_only_the_split_asked_for_is_corrupted(configure: Configure, what: dict[str, Any]) -> None:
    for corrupt, split in product(("train", "test", "both"), ("train", "test")):
        changed = (seen(configure, split=split, corrupt=corrupt, **what) != PIXELS).any()
        assert changed == (corrupt in (split, "both"))


@pytest.mark.parametrize("what", EVERY, ids=str)
def test_an_image_keeps_what_is_done_to_it(configure: Configure, what: dict[str, Any]) -> None:
    corruptions = done(configure, **what)
    whole = np.asarray(corruptions.images(PIXELS, IDENTITY, split="train"))
    part = np.asarray(corruptions.images(PIXELS[7:19], IDENTITY[7:19], split="train"))
    assert part == pytest.approx(whole[7:19], abs=1e-4)


def test_pixel_noise_is_of_the_size_asked_for(configure: Configure) -> None:
    noise = seen(configure, pixel_noise=0.1) - PIXELS
    assert noise.std() == pytest.approx(25.5, rel=0.03)
    assert abs(noise.mean()) < 1


def test_salt_and_pepper_are_a_share_of_the_pixels(configure: Configure) -> None:
    salted = seen(configure, salt_and_pepper=0.3)
    assert (salted == 0).mean() == pytest.approx(0.15, abs=0.01)
    assert (salted == 255).mean() == pytest.approx(0.15, abs=0.01)
    assert (salted == PIXELS)[(salted > 0) & (salted < 255)].all()


def test_noise_in_place_of_images_has_their_statistics(configure: Configure) -> None:
    data = configure(data={"image_noise": 0.25}).data
    normalisation = Normalisation(np.float32([100.0]), np.float32([20.0]))
    corruptions = Corruptions(data, jax.random.key(0), CorruptionStrengths.from_config(data), normalisation)
    shown = np.asarray(corruptions.images(PIXELS, IDENTITY, split="train"))
    replaced = (np.abs(shown * 20 + 100 - PIXELS) > 1e-2).any((1, 2, 3))
    assert replaced.mean() == pytest.approx(0.25, abs=0.06)
    assert shown[replaced].mean() == pytest.approx(0, abs=0.05)
    assert shown[replaced].std() == pytest.approx(1, abs=0.05)


def test_labels_are_wrong_as_often_as_asked_for(configure: Configure) -> None:
    image_ids, labels = np.arange(2000), np.arange(2000) % 10
    few, many = (
        np.asarray(done(configure, label_noise=share).labels(labels, image_ids, 10)) for share in (0.1, 0.4)
    )
    assert (many != labels).mean() == pytest.approx(0.4, abs=0.04)
    assert ((few != labels) <= (many != labels)).all()
    wrong = ((many - labels) % 10)[many != labels]
    assert stats.chisquare(np.bincount(wrong, minlength=10)[1:]).pvalue > 1e-3
    several = np.eye(10, dtype=np.int32)[labels]
    flipped = np.asarray(done(configure, label_noise=0.4).labels(several, image_ids, 10)) != several
    assert flipped.mean() == pytest.approx(0.4, abs=0.02)


def test_shifts_move_the_image_and_are_even(configure: Configure) -> None:
    moved = seen(configure, shift=1)
    padded = np.pad(PIXELS[..., 0], ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    windows = {(y, x): padded[:, y : y + 8, x : x + 6] for y in range(3) for x in range(3)}
    hits = np.stack([(moved[..., 0] == window).all((1, 2)) for window in windows.values()])
    assert (hits.sum(0) == 1).all()
    assert stats.chisquare(hits.sum(1)).pvalue > 1e-3


def test_augmentation_is_anew_each_step_and_not_in_evaluation(configure: Configure) -> None:
    assert (seen(configure, crop=2, flip=True) == PIXELS).all()
    first, again, second = (seen(configure, crop=2, flip=True, step=step) for step in (0, 0, 1))
    assert (first == again).all() and (first != second).any()
    flipped = seen(configure, flip=True, step=0)
    mirrored = (flipped == PIXELS[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == PIXELS).all((1, 2, 3)) | mirrored).all()
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("height", "width", "block"), [(8, 8, 1), (8, 8, 2), (8, 8, 4), (8, 8, 8), (6, 1, 3)]
)
def test_blocks_change_places_whole(height: int, width: int, block: int) -> None:
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


def test_a_fixed_permutation_is_that_of_both_splits_and_can_be_undone(configure: Configure) -> None:
    train = seen(configure, permutation="fixed")
    test = np.asarray(done(configure, permutation="fixed").images(PIXELS, -1 - IDENTITY, split="test"))
    assert (train == test).all()
    assert (np.sort(train.reshape(400, -1)) == np.sort(PIXELS.reshape(400, -1))).all()
    own = seen(configure, permutation="per_image")
    same = np.broadcast_to(PIXELS[:1], PIXELS.shape)
    data = done(configure, permutation="per_image")
    assert len({bytes(image) for image in np.asarray(data.images(same, IDENTITY, split="train"))}) > 390
    assert (own != train).any()


@pytest.mark.parametrize("resolution", [1, 2, 3, 4, 5, 8])
def test_reduced_images_are_means_over_areas(resolution: int) -> None:
    images = PIXELS[:4, :, :, :].astype(np.float32)[:, :, :4]
    got = np.asarray(reduce_resolution(jnp.asarray(images), jnp.int32(resolution)))
    assert got.mean((1, 2)) == pytest.approx(images.mean((1, 2)), rel=1e-5) or resolution in (3, 5)
    if resolution == 8:
        assert got == pytest.approx(images, rel=1e-5)
    if resolution == 4:
        expected = images.reshape(4, 4, 2, 4, 1).mean(2).repeat(2, axis=1)
        assert got[..., 0] == pytest.approx(expected[..., 0], rel=1e-5)
    assert len(np.unique(got[0, :, 0, 0])) <= resolution


def test_levels_share_a_program_and_give_what_they_give_alone(configure: Configure) -> None:
    def level(amount: float, side: int, where: str) -> Any:
        data = {"pixel_noise": amount, "permutation": "fixed", "block": side, "corrupt": where, "shift": side}
        return configure(data=data)

    configs = [level(0.1, 1, "both"), level(0.5, 2, "train"), level(0.3, 5, "test")]
    assert len({shape_of_program(config) for config in configs}) == 1
    images = load_images(configs[0].data)

    def losses(runs: list[Any]) -> list[float]:
        rows = list(StackTrainer(runs[0], images).train(runs))[-1].rows or []
        return [row["test/loss"] for row in rows]

    together = losses(configs)
    assert losses(configs[1:2]) == pytest.approx(together[1:2], abs=1e-5)
    assert len(set(together)) == 3


def test_the_summary_says_what_was_done_to_which_split(configure: Configure) -> None:
    data = configure(data={"pixel_noise": 0.2, "label_noise": 0.1, "corrupt": "test", "flip": True}).data
    assert corruption_summary(data) == {
        "corruption/test/pixel_noise": 0.2,
        "corruption/train/label_noise": 0.1,
        "corruption/train/flip": True,
    }
    assert corruption_summary(configure().data) == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"permutation": "fixed", "block": 3},
            "data.block=3: does not fill 10x10 images; allowed: 1, 2, 5, 10",
        ),
        ({"block": 2}, "data.block=2: with data.permutation=none no block moves; allowed: 1"),
        ({"shift": 10}, "data.shift=10: too much for 10x10 images; allowed: up to 9"),
        ({"resolution": 11}, "data.resolution=11: too much for 10x10 images; allowed: up to 10"),
    ],
)
def test_what_cannot_be_done_is_refused(configure: Configure, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check_corruptions(configure(data=changes).data)
    assert str(refusal.value) == told
