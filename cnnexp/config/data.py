"""The data sections: which images, how many of them, and what is done to them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cnnexp.config.sections import Count, Deviation, Folder, ProperFraction, Section, Seed, Size, Words

Fraction = Annotated[float, Field(ge=0, le=1)]
Permutation = Literal["none", "fixed", "per_image"]
BATCH_SIZE = (
    "The number of images of one optimiser step. At most the images of the data set; with"
    " more than `train_size`, a batch repeats some images."
)


class DataSection(Section):
    """The keys of every data set; those from `corrupt` on say what is done to the images."""

    train_size: Size | None = Field(
        default=None,
        description="The number of training images: a subset with the same number of each class, drawn by"
        " the seed; a larger subset contains a smaller one. null: all images.",
    )
    validation_size: Count = Field(
        default=0,
        description="The number of images to choose hyperparameters by, with the class frequencies of the"
        " data set. They are never trained on.",
    )
    split_seed: Seed | None = Field(
        default=None,
        description="The seed that draws the training and validation images; null: that of the run.",
    )
    batch_size: Size = Field(default=64, description=BATCH_SIZE)
    stream: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Where batches come from. `always`: from disk. `never`: from the memory of the "
        "device. `auto`: from disk where the images do not fit into the memory of the device.",
    )
    corrupt: Literal["train", "test", "both"] = Field(
        default="both", description="The split whose images the following keys corrupt."
    )
    resolution: Size | None = Field(
        default=None,
        description="The pixels per side that the detail of the images is reduced to; their size stays. "
        "null: all detail.",
    )
    image_noise: Fraction = Field(
        default=0.0, description="The fraction of images that are replaced by noise."
    )
    shift: Count = Field(
        default=0,
        description="The most pixels that an image is moved by, up or down and left or right, once and "
        "for all.",
    )
    permutation: Permutation = Field(
        default="none",
        description="How the blocks of an image change places. `fixed`: the same way in all images. "
        "`per_image`: another way in each image.",
    )
    block: Size = Field(
        default=1, description="The side of the blocks that `permutation` moves, in pixels; 1: single pixels."
    )
    pixel_noise: Deviation = Field(
        default=0.0,
        description="The standard deviation of Gaussian noise that is added to each image once and for "
        "all, where white is 1.",
    )
    salt_and_pepper: Fraction = Field(
        default=0.0, description="The fraction of pixels that are set to white or black."
    )
    label_noise: ProperFraction = Field(
        default=0.0, description="The fraction of training labels that are wrong."
    )
    crop: Count = Field(
        default=0,
        description="Augmentation: the most pixels that training images move by, drawn anew at each step.",
    )
    flip: bool = Field(
        default=False,
        description="Augmentation: mirror training images left to right with probability one half, drawn "
        "anew at each step.",
    )


class Digits(DataSection):
    """scikit-learn's handwritten digits, as they are or scattered on a noisy canvas."""

    name: Literal["digits"] = Field(
        default="digits",
        description="The data set: scikit-learn's handwritten digits, which need no download.",
    )
    scatter: bool = Field(
        default=True,
        description="Place digits at random on a noisy canvas; false: the 8x8 digits as they are.",
    )
    digits: Annotated[int, Field(ge=1, le=9)] = Field(
        default=1,
        description="The number of digits on a canvas. With several, an image has several labels, which need "
        "model.head=sigmoid.",
    )
    canvas: Annotated[int, Field(ge=8)] = Field(default=16, description="The side of the canvas, in pixels.")
    noise: Deviation = Field(
        default=0.1, description="The standard deviation of the noise on the canvas, where full ink is 1."
    )
    apart: bool = Field(
        default=False,
        description="Place training digits in the middle third of all columns, validation digits left of "
        "them and test digits right of them.",
    )
    images: Size = Field(default=10_000, description="The number of canvases made for training.")
    validation_images: Size = Field(
        default=2_000,
        description="The number of canvases made for validation, from other digits; each seed draws its "
        "`validation_size` from them.",
    )
    test_images: Size = Field(
        default=2_000, description="The number of canvases made for testing, from yet other digits."
    )
    seed: Seed = Field(
        default=0,
        description="The seed of the split of the digits, their places and the noise on the canvas.",
    )


class SyntheticTask(DataSection):
    """A synthetic task, drawn from its seed in any number."""

    images: Size = Field(default=10_000, description="The number of images drawn for training.")
    test_images: Size = Field(default=2_000, description="The number of images drawn for testing.")
    seed: Seed = Field(default=0, description="The seed that draws the task and its images.")


def _inherited(key: str, default: int) -> Any:
    """Return the key of a synthetic task with another default."""
    return Field(default=default, description=SyntheticTask.model_fields[key].description)


class SignalDistribution(SyntheticTask):
    """Dynamic Signal Distribution (Lahoti 2024): one patch of many carries a signal, the others noise.

    The label is the sign of the signal. Patches: model.kernel_size=[[d,1]] model.stride=[[d,1]].
    """

    name: Literal["signal_distribution"] = Field(
        default="signal_distribution",
        description="The data set: signals, one patch of which carries plus or minus a pattern (Lahoti "
        "2024).",
    )
    patches: Size = Field(default=8, description="The number k of patches of a signal.")
    dimension: Size = Field(default=8, description="The number d of values of a patch.")
    noise: Deviation = Field(
        default=0.25,
        description="The standard deviation sigma of the noise on all patches, where the pattern has "
        "length 1.",
    )
    images: Size = _inherited("images", 8_192)


class ChannelNorm(SyntheticTask):
    """Which of two channels is the longer vector (Li, Zhang and Arora 2021)."""

    name: Literal["channel_norm"] = Field(
        default="channel_norm",
        description="The data set: is the red or the green channel of a Gaussian image the longer vector "
        "(Li, Zhang and Arora 2021)?",
    )
    side: Size = Field(default=16, description="The side d of the Gaussian images of 3 channels, in pixels.")


class KPatterns(SyntheticTask):
    """A function of k bits in a row, at an unknown place (Malach and Shalev-Shwartz 2021)."""

    name: Literal["k_patterns"] = Field(
        default="k_patterns",
        description="The data set: a function of k bits in a row at an unknown place among n (Malach and "
        "Shalev-Shwartz 2021).",
    )
    length: Size = Field(default=60, description="The number n of bits of an input.")
    pattern: Size = Field(default=5, description="The number k of bits that decide the label.")
    function: Literal["parity", "random"] = Field(
        default="parity", description="The function of these bits: their parity, or one drawn at random."
    )


class MNIST1D(SyntheticTask):
    """Ten one-dimensional digits, padded, scaled, moved, sheared and buried in noise (Greydanus 2020)."""

    name: Literal["mnist1d"] = Field(
        default="mnist1d", description="The data set: MNIST-1D, signals of ten classes (Greydanus 2020)."
    )
    length: Size = Field(default=40, description="The number of points of a signal.")
    padding: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=[36, 60], description="The least and the most zeros behind the 12 points of a template."
    )
    scale: Deviation = Field(
        default=0.4, description="The width of the range around 1 that amplitudes are drawn from."
    )
    translation: Size = Field(
        default=48, description="The number of places that a template is moved to, around the end."
    )
    correlated_noise: Deviation = Field(
        default=0.25, description="The standard deviation of the correlated noise, before it is smoothed."
    )
    noise: Deviation = Field(
        default=0.02,
        description="The standard deviation of the noise that is independent from point to point.",
    )
    shear: Deviation = Field(
        default=0.75, description="The width of the range around 0 that slopes are drawn from."
    )
    images: Size = _inherited("images", 4_000)
    test_images: Size = _inherited("test_images", 1_000)


class TFDSImages(DataSection):
    """An image set of TensorFlow Datasets, prepared once with `cnnexp data prepare NAME`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[\w.+-]+)?$"), Words("a name of TFDS")] = Field(
        description="The data set, by its name in TensorFlow Datasets."
    )
    data_dir: Folder | None = Field(
        default=None,
        description="The folder of prepared sets; null: the variable TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
    )
    train_split: str = Field(
        default="train",
        min_length=1,
        description="The split to train on, or a part of it in the syntax of TFDS: train[:80%], "
        "train+validation.",
    )
    test_split: str = Field(
        default="test",
        min_length=1,
        description="The split to test on, which has no image of `train_split`; of a set without a test "
        "split train[80%:].",
    )
    size: Size | None = Field(
        default=None, description="The side that images are scaled to, in pixels; null: they keep their size."
    )
    batch_size: Size = Field(default=128, description=BATCH_SIZE)


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
    """Return the corruptions of each split under the names they have in a summary."""
    done = {key: getattr(data, key) for key in LEVELS if getattr(data, key)}
    if data.permutation != "none":
        done |= {"permutation": data.permutation, "block": data.block}
    splits = {"train": ["train"], "test": ["test"], "both": ["train", "test"]}[data.corrupt]
    return {
        f"corruption/{split}/{key}": value
        for key, value in done.items()
        for split in (["train"] if key in ON_TRAINING else splits)
    }
