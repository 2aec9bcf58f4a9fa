"""The sections of the data sets that hold images, one class for each kind."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from cnnexp.config.data import BATCH_SIZE, DATA_VARIANTS, TFDS_VARIANT, DataSection
from cnnexp.config.sections import AllowedText, Deviation, Folder, Seed, Size, Text
from cnnexp.config.synthetic import SYNTHETIC_VARIANTS
from cnnexp.core.errors import format_value


class Digits(DataSection):
    """scikit-learn's handwritten digits, unmodified or scattered on a noisy canvas."""

    name: Literal["digits"] = Field(
        default="digits",
        description="The data set: scikit-learn's handwritten digits, which need no download.",
    )
    scatter: bool = Field(
        default=True,
        description="Whether digits are placed at random on a noisy canvas; false: the original 8x8 images.",
    )
    digits: Annotated[int, Field(ge=1, le=9)] = Field(
        default=1,
        description="The number of digits on a canvas. With more than one, images have several labels, "
        "which require model.head=sigmoid.",
    )
    canvas: Annotated[int, Field(ge=8)] = Field(default=16, description="The side of the canvas, in pixels.")
    noise: Deviation = Field(
        default=0.1,
        description="The standard deviation of the noise on the canvas, on a scale where full ink is 1.",
    )
    apart: bool = Field(
        default=False,
        description="Whether digits of different splits have disjoint positions: training digits in the "
        "middle third of the columns, validation digits to their left and test digits to their right.",
    )
    images: Size = Field(default=10_000, description="The number of training canvases.")
    validation_images: Size = Field(
        default=2_000,
        description="The number of validation canvases, made from digits not used in training. Each seed "
        "draws its `validation_size` images from them.",
    )
    test_images: Size = Field(
        default=2_000,
        description="The number of test canvases, made from digits not used in training or validation.",
    )
    seed: Seed = Field(
        default=0,
        description="The seed that draws the split of the digits, their positions and the noise on the "
        "canvas.",
    )


TestFraction = Annotated[float, Field(gt=0, lt=1)]
TEST_SPLIT = "test"  # the default of TFDSImages.test_split


class TFDSImages(DataSection):
    """An image set of TensorFlow Datasets, prepared once with `cnnexp data prepare NAME`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[\w.+-]+)?$"), AllowedText("a TFDS name")] = Field(
        description="The data set, by its name in TensorFlow Datasets."
    )
    data_dir: Folder | None = Field(
        default=None,
        description="The folder of prepared data sets; null: the environment variable TFDS_DATA_DIR, or "
        "else ~/tensorflow_datasets.",
    )
    train_split: str = Field(
        default="train",
        min_length=1,
        description="The training split, in the syntax of TFDS: for example train[:80%] or train+validation.",
    )
    test_split: str = Field(
        default=TEST_SPLIT,
        min_length=1,
        description="The test split, in the syntax of TFDS. It must not overlap `train_split`. For a set "
        "that has only one split, `test` is a part drawn from `train_split`, see `test_fraction`.",
    )
    test_fraction: TestFraction | None = Field(
        default=None,
        description="The fraction of `train_split` that is drawn as the test split, with the class "
        "frequencies of all images, if the set has only one split. null: 0.2.",
    )
    seed: Seed = Field(default=0, description="The seed that draws the test split of a set without one.")
    size: Size | None = Field(
        default=None,
        description="The side that images are resized to, in pixels; null: images keep their size.",
    )
    batch_size: Size = Field(default=128, description=BATCH_SIZE)


def _refuse_missing(text: str) -> str:
    if text == "???":  # Hydra's word for a value that must be typed
        raise PydanticCustomError("missing", "a value is missing")
    return text


DataPath = Annotated[Folder, AfterValidator(_refuse_missing)]
Checksum = Annotated[str, Field(pattern=r"^x[0-9a-f]{16}$"), AllowedText("a checksum")]
Option = bool | int | float | str | None
Options = dict[str, Option | list[Option]]


class ArrayData(DataSection):
    """Images and labels of the user."""

    test_fraction: TestFraction | None = Field(
        default=None,
        description="The fraction of the images that is drawn as the test split, with the class frequencies "
        "of all images, if the data have no test split. null: 0.2.",
    )
    seed: Seed = Field(default=0, description="The seed that draws the test split.")
    checksum: Checksum | None = Field(
        default=None,
        description="The checksum of the images and labels, a part of a run's identity. null: it is "
        "computed and filled in. If it is set, other images are refused.",
    )


class NPZ(ArrayData):
    """Arrays in a NumPy archive.

    Their names are train_images, train_labels, test_images and test_labels, or images and labels.
    """

    name: Literal["npz"] = Field(
        default="npz", description="The data set: arrays of images and labels in an .npz file."
    )
    path: Annotated[DataPath, AllowedText("a file")] = Field(description="The .npz file.")


class ImageFolder(ArrayData):
    """PNG and JPEG files, in one folder per class.

    The folders of the classes lie in `path`, or in its folders train and test.
    """

    name: Literal["folder"] = Field(
        default="folder", description="The data set: PNG and JPEG files, in one folder per class."
    )
    path: DataPath = Field(
        description="The folder that holds one folder per class, or the folders train and test, each with "
        "one folder per class."
    )
    channels: Literal["auto", 1, 3, 4] = Field(
        default="auto",
        description="The number of channels of the images. 1: greyscale. 3: red, green and blue. 4: also "
        "alpha; otherwise, transparent pixels are blended with white. auto: 1 if all files are greyscale, "
        "otherwise 3.",
    )
    size: Size | None = Field(
        default=None,
        description="The side that images are resized to, in pixels; null: images keep their size.",
    )


class CustomData(ArrayData):
    """Arrays that a function of the user returns.

    The function returns a dictionary or NamedTuple of arrays with the names of those in an .npz file.
    """

    name: Literal["custom"] = Field(
        default="custom", description="The data set: arrays that a Python function returns."
    )
    file: Text | None = Field(
        default=None,
        description="The file with the function, instead of `target`: `my_data.py`, in which it is called "
        "`load`, or `my_data.py:function`.",
    )
    target: Text | None = Field(
        default=None,
        description="The function that returns the arrays, `module:function`, searched for in the working "
        "folder and the installed packages.",
    )
    options: Options = Field(
        default={}, description="Arguments of the function by their names, such as {side: 16}."
    )
    loading_code: Text | None = Field(
        default=None,
        description="The checksum of the code that `file` or `target` names, which is filled in. Images of "
        "stored runs are made with this code only.",
    )

    @model_validator(mode="after")
    def _check_source(self) -> "CustomData":
        if (self.file is None) == (self.target is None):
            keys = f"data.file={format_value(self.file)} data.target={format_value(self.target)}"
            raise ValueError(f"{keys}: images come from one function; set one, null the other")
        return self


DATA_VARIANTS.update(
    {
        "digits": Digits,
        **SYNTHETIC_VARIANTS,
        "npz": NPZ,
        "folder": ImageFolder,
        "custom": CustomData,
        TFDS_VARIANT: TFDSImages,
    }
)
