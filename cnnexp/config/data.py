"""The data sections: which images, how many of them, and what is done to them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from cnnexp.config.sections import Count, Deviation, Folder, Section, Seed, Share, Size

Fraction = Annotated[float, Field(ge=0, le=1)]
Permutation = Literal["none", "fixed", "per_image"]


class DataSection(Section):
    """What all data sets share. From `corrupt` on, all keys say what is done to the images."""

    train_size: Size | None = Field(description="training images, class-balanced and nested; null: all")
    validation_size: Count = Field(
        description="images to choose by, with the class frequencies of the data set; never trained on"
    )
    split_seed: Seed | None = Field(description="draws both; null: the run's seed")
    batch_size: Size = Field(
        description="images of a step: at most those of the set; more than train_size repeats some"
    )
    stream: Literal["auto", "always", "never"] = Field(description="from disk, or from device memory")
    corrupt: Literal["train", "test", "both"] = Field(description="split whose images are corrupted")
    resolution: Size | None = Field(description="pixels a side that detail is reduced to; null: all")
    image_noise: Fraction = Field(description="share of images that are nothing but noise")
    shift: Count = Field(description="pixels that each image is moved by at most")
    permutation: Permutation = Field(description="of the blocks of an image")
    block: Size = Field(description="side of the blocks that change places; 1: pixels")
    pixel_noise: Deviation = Field(description="of Gaussian noise that each image keeps; white is 1")
    salt_and_pepper: Fraction = Field(description="share of pixels that are white or black")
    label_noise: Share = Field(description="of training labels that are wrong")
    crop: Count = Field(description="augmentation: pixels that training images move by, anew each time")
    flip: bool = Field(description="augmentation: mirror training images left to right, every second time")


class Digits(DataSection):
    """scikit-learn's handwritten digits, as they are or scattered on a noisy canvas."""

    name: Literal["digits"]
    scatter: bool
    digits: Annotated[int, Field(ge=1, le=9)] = Field(description="on a canvas; several: several labels")
    canvas: Annotated[int, Field(ge=8)] = Field(description="side of the canvas, in pixels")
    noise: Deviation = Field(description="of the canvas noise; ink is at most 1")
    apart: bool = Field(
        description="training digits in the middle third of all columns, validation digits left of them, "
        "test digits right of them"
    )
    images: Size = Field(description="canvases made for training")
    validation_images: Size = Field(description="canvases made for validation; each seed draws from them")
    test_images: Size = Field(description="canvases made for testing")
    seed: Seed = Field(description="of the split, the places and the noise")


class SyntheticTask(DataSection):
    """A synthetic task, drawn from its seed in any number."""

    images: Size = Field(description="drawn for training")
    test_images: Size = Field(description="drawn for testing")
    seed: Seed = Field(description="of the draws")


class SignalDistribution(SyntheticTask):
    """Dynamic Signal Distribution (Lahoti 2024): one patch of many carries a signal, the others noise."""

    name: Literal["signal_distribution"]
    patches: Size = Field(description="k")
    dimension: Size = Field(description="d, of a patch")
    noise: Deviation = Field(description="sigma; the signal has length 1")


class ChannelNorm(SyntheticTask):
    """Which of two channels is the longer vector (Li, Zhang and Arora 2021)."""

    name: Literal["channel_norm"]
    side: Size = Field(description="d, of the Gaussian images of 3 channels")


class KPatterns(SyntheticTask):
    """A function of k bits in a row, at an unknown place (Malach and Shalev-Shwartz 2021)."""

    name: Literal["k_patterns"]
    length: Size = Field(description="n, bits of an input")
    pattern: Size = Field(description="k, bits that decide")
    function: Literal["parity", "random"] = Field(description="of these bits")


class MNIST1D(SyntheticTask):
    """Ten one-dimensional digits, padded, scaled, moved, sheared and buried in noise (Greydanus 2020)."""

    name: Literal["mnist1d"]
    length: Size = Field(description="of a signal")
    padding: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(description="least and most")
    scale: Deviation = Field(description="width of the range that amplitudes are drawn from")
    translation: Size = Field(description="number of places to move to")
    correlated_noise: Deviation
    noise: Deviation = Field(description="independent from point to point")
    shear: Deviation = Field(description="width of the range that slopes are drawn from")


class TFDSImages(DataSection):
    """An image set of TensorFlow Datasets, prepared once."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[\w.+-]+)?$")]
    data_dir: Folder | None = Field(description="TFDS's folder; null: $TFDS_DATA_DIR or TFDS's default")
    train_split: str = Field(min_length=1, description="of TFDS, or a part of it: train[:80%], train+test")
    test_split: str = Field(min_length=1, description="likewise; no image of train_split: train[80%:]")
    size: Size | None = Field(description="side that images are brought to; null: as they are")


OTHER = "tfds"  # what every name is that is not one of a variant
DATA_VARIANTS: dict[str, type[DataSection]] = {
    "digits": Digits,
    "signal_distribution": SignalDistribution,
    "channel_norm": ChannelNorm,
    "k_patterns": KPatterns,
    "mnist1d": MNIST1D,
    OTHER: TFDSImages,
}


def _variant(value: object) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return name if name is None or (isinstance(name, str) and name in DATA_VARIANTS) else OTHER


Data = Annotated[
    Annotated[Digits, Tag("digits")]
    | Annotated[SignalDistribution, Tag("signal_distribution")]
    | Annotated[ChannelNorm, Tag("channel_norm")]
    | Annotated[KPatterns, Tag("k_patterns")]
    | Annotated[MNIST1D, Tag("mnist1d")]
    | Annotated[TFDSImages, Tag(OTHER)],
    Discriminator(_variant),
]
# Numbers that are traced: a program serves all their levels. Whether there is any of what they measure is
# a part of the program, except for `block` and `corrupt`, which say how and where.
CORRUPTIONS = ("resolution", "image_noise", "shift", "pixel_noise", "salt_and_pepper")
ON_TRAINING = ("label_noise", "crop", "flip")  # whatever `corrupt` says
LEVELS = CORRUPTIONS + ON_TRAINING
WHERE = ("block", "corrupt")
NOT_IDENTITY = ("data_dir", "stream")  # where the images lie does not change them


def corruption_summary(data: DataSection) -> dict[str, float | int | str]:
    """What is done to which split, under the names it has in a summary; what is not done is left out."""
    done = {key: getattr(data, key) for key in LEVELS if getattr(data, key)}
    if data.permutation != "none":
        done |= {"permutation": data.permutation, "block": data.block}
    splits = {"train": ["train"], "test": ["test"], "both": ["train", "test"]}[data.corrupt]
    return {
        f"corruption/{split}/{key}": value
        for key, value in done.items()
        for split in (["train"] if key in ON_TRAINING else splits)
    }
