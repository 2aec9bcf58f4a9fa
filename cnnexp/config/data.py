"""The data sections: the images, their number and their corruptions."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.config.sections import (
    AllowedText,
    Arguments,
    Count,
    Deviation,
    ProperFraction,
    Section,
    Seed,
    Size,
    Text,
)
from cnnexp.core.errors import format_value
from cnnexp.core.plugins import load_entry_points

Fraction = Annotated[float, Field(ge=0, le=1)]
Permutation = Literal["none", "fixed", "per_image"]
Arrange = Literal["none", "correlations", "random"]
BATCH_SIZE = (
    "The number of images per optimiser step, at most the number of training images of the data set. If it "
    "exceeds `train_size`, a batch repeats some images."
)


class DataSection(Section):
    """The keys of every data set; those from `corrupt` on are the corruptions and the augmentation.

    Attributes:
        licence: The licence of the images, and who states it, for reports; a registered data set has its own.
    """

    licence: ClassVar[str] = "not stated"

    train_size: Size | None = Field(
        default=None,
        description="The number of training images: a class-balanced subset, drawn by the seed. Larger "
        "subsets contain the smaller ones. null: all images.",
    )
    validation_size: Count = Field(
        default=0,
        description="The number of validation images, on which hyperparameters are chosen. They have the "
        "class frequencies of the data set and are never trained on.",
    )
    split_seed: Seed | None = Field(
        default=None,
        description="The seed that draws the training and validation images; null: the seed of the run.",
    )
    batch_size: Size = Field(default=64, description=BATCH_SIZE)
    stream: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="The source of the batches. `always`: disk. `never`: the memory of the device. `auto`: "
        "disk if the images do not fit into the memory of the device.",
    )
    corrupt: Literal["train", "test", "both"] = Field(
        default="both", description="The splits that the following corruptions apply to."
    )
    resolution: Size | None = Field(
        default=None,
        description="The resolution that images are reduced to, in pixels per side; their size does not "
        "change. null: full resolution.",
    )
    image_noise: Fraction = Field(
        default=0.0, description="The fraction of images that are replaced by noise."
    )
    shift: Count = Field(
        default=0,
        description="The largest shift of an image along each axis, in pixels. Each image has one shift, "
        "drawn once.",
    )
    permutation: Permutation = Field(
        default="none",
        description="How the blocks of an image are permuted. `fixed`: in the same way in all images. "
        "`per_image`: differently in each image.",
    )
    block: Size = Field(
        default=1,
        description="The side of the blocks that `permutation` permutes, in pixels; 1: single pixels.",
    )
    arrange: Arrange = Field(
        default="none",
        description="How pixels are rearranged, in the same way in all images of both splits, after the "
        "corruptions. `correlations`: pixels that are correlated in the training images of the run become "
        "neighbours (Alexander 2023). `random`: at random, a control.",
    )
    pixel_noise: Deviation = Field(
        default=0.0,
        description="The standard deviation of the Gaussian noise added to images, on a scale where white "
        "is 1. The noise of an image is drawn once.",
    )
    salt_and_pepper: Fraction = Field(
        default=0.0, description="The fraction of pixels that are set to white or black."
    )
    corruption: Annotated[Text, AllowedText("a name, MODULE:FUNCTION or FILE.py:FUNCTION")] | None = Field(
        default=None,
        description="A further corruption, applied after the others: blur, occlusion, a name that a package "
        "has registered, or the import path of a function of the user.",
    )
    corruption_strength: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="The strength of `corruption`, which the function defines: of blur, the standard "
        "deviation in pixels; of occlusion, the fraction of the area. 0: no corruption.",
    )
    corruption_options: Arguments = Field(
        default={}, description="Further arguments of the function of `corruption` by their names."
    )
    code: Text | None = Field(
        default=None,
        description="The checksum of the user's code in `corruption`. It is filled in by the "
        "program, so that changed code is trained as new runs.",
    )
    label_noise: ProperFraction = Field(
        default=0.0, description="The fraction of training labels that are replaced by a wrong label."
    )
    crop: Count = Field(
        default=0,
        description="Augmentation: the largest random shift of training images along each axis, in pixels, "
        "drawn anew at each step.",
    )
    flip: bool = Field(
        default=False,
        description="Augmentation: mirror training images left to right with probability one half, drawn "
        "anew at each step.",
    )

    @model_validator(mode="after")
    def _check_corruption(self) -> "DataSection":
        name, strength = self.corruption, self.corruption_strength
        if name is not None and strength is None:
            raise ValueError(f"data.corruption_strength=null: must be a number with data.corruption={name}")
        for key, value in (("strength", strength), ("options", self.corruption_options or None)):
            if name is None and value is not None:
                raise ValueError(
                    f"data.corruption_{key}={format_value(value)}: needs data.corruption, which is null"
                )
        return self

    @property
    def dataset_name(self) -> str:
        """The value of the key `name`, which every data set has."""
        return dict(self)["name"]


TFDS_VARIANT = "tfds"  # the variant of every name that is not the name of another
DATA_VARIANTS: dict[str, type[DataSection]] = {}  # filled by `cnnexp.config.datasets`
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
MADE_HERE = "none needed: cnnexp generates the images"
# By the name of the data set without its variant, as its authors state it. TFDS keeps the checksums of files.
LICENCES = {
    "digits": "CC BY 4.0 (UCI Machine Learning Repository, optical recognition of handwritten digits); the "
    f"file digits.csv.gz of scikit-learn has the SHA-256 {DIGITS_SHA256}",
    **dict.fromkeys(("signal_distribution", "channel_norm", "k_patterns"), MADE_HERE),
    **dict.fromkeys(("nonlinear_gaussian", "random_hierarchy", "teacher"), MADE_HERE),
    "mnist1d": f"{MADE_HERE}, from the templates of the mnist1d package (Apache 2.0, Greydanus 2020)",
    "mnist": "none stated by its authors",
    "fashion_mnist": "MIT (Zalando)",
    "kmnist": "CC BY-SA 4.0 (KMNIST Dataset, created by CODH, adapted from Kuzushiji Dataset, created by "
    "NIJL and others)",
    "emnist": "none stated by its authors; derived from NIST Special Database 19",
    "cifar10": "none stated by its authors",
    "cifar100": "none stated by its authors",
    "svhn_cropped": "for non-commercial use only (Stanford University)",
    "imagenet2012": "for non-commercial research and education only, by its terms of access (image-net.org)",
    "imagenette": "Apache 2.0 for the selection (fast.ai); the images are ImageNet's",
}


def register_section(section: type[DataSection]) -> None:
    """Add the section of a data set, under the default of its key `name`.

    Raises:
        ValueError: The section has no such key, or another section has the same name.
    """
    if section in DATA_VARIANTS.values():
        return
    field = section.model_fields.get("name")
    name = field.default if field else None
    if not isinstance(name, str):
        raise ValueError(f"{section.__name__}.name: must have a default, the name of the data set")
    if name in DATA_VARIANTS:
        raise ValueError(f"{section.__name__}.name={name}: is the name of another data set")
    DATA_VARIANTS[name] = section


def find_variant(name: str) -> str:
    """Return the variant of the section `data` for a value of its key `name`."""
    if name not in DATA_VARIANTS:
        load_entry_points()
    return name if name in DATA_VARIANTS else TFDS_VARIANT


def describe_licence(name: str) -> str:
    """Describe the licence of a data set, by the name that `data.name` gives it."""
    return LICENCES.get(name.partition("/")[0]) or DATA_VARIANTS.get(name, DataSection).licence


def _parse_section(value: object) -> DataSection:
    if isinstance(value, DataSection):
        return value
    name = value.get("name") if isinstance(value, dict) else None
    if name is None:
        raise PydanticCustomError("missing", "a value is missing")
    variant = find_variant(name) if isinstance(name, str) else TFDS_VARIANT
    return DATA_VARIANTS[variant].model_validate(value)


# The class of the section follows from its name, so that data sets can be registered.
Data = Annotated[SerializeAsAny[DataSection], PlainValidator(_parse_section)]
# The strengths of corruptions are traced, so that one program serves all of them; a strength of zero removes
# the corruption from the program. `block` and `corrupt` are traced whatever their value.
IMAGE_CORRUPTIONS = (
    "resolution",
    "image_noise",
    "shift",
    "pixel_noise",
    "salt_and_pepper",
    "corruption_strength",
)
TRAINING_CORRUPTIONS = ("label_noise", "crop", "flip")  # of training images, whatever `corrupt` is
STRENGTH_KEYS = IMAGE_CORRUPTIONS + TRAINING_CORRUPTIONS
TRACED_OPTIONS = ("block", "corrupt")
# Corruptions that runs may have or lack in one program, in which they are then branches.
OPTIONAL_CORRUPTIONS = ("pixel_noise", "permutation", "label_noise")
# The location of the images does not change them.
STORAGE_KEYS = ("data_dir", "stream", "path", "file", "target", "loading_code")


def corruption_summary(data: DataSection) -> dict[str, float | int | str]:
    """Return the corruptions of each split by their names in a summary, such as `corruption/train/shift`."""
    strengths = {key: getattr(data, key) for key in STRENGTH_KEYS if getattr(data, key)}
    if strength := strengths.pop("corruption_strength", None):
        strengths[str(data.corruption).rpartition(":")[2]] = strength
    if data.permutation != "none":
        strengths |= {"permutation": data.permutation, "block": data.block}
    splits = {"train": ["train"], "test": ["test"], "both": ["train", "test"]}[data.corrupt]
    return {
        f"corruption/{split}/{key}": value
        for key, value in strengths.items()
        for split in (["train"] if key in TRAINING_CORRUPTIONS else splits)
    }
