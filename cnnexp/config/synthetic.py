"""The sections of the synthetic tasks, whose images are drawn by a seed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from cnnexp.config.data import DataSection
from cnnexp.config.sections import AllowedText, Count, Deviation, Positive, Seed, Size, TyingText


class SyntheticTask(DataSection):
    """A synthetic task: a seed draws any number of images."""

    images: Size = Field(default=10_000, description="The number of training images.")
    test_images: Size = Field(default=2_000, description="The number of test images.")
    seed: Seed | None = Field(
        default=0,
        description="The seed that draws the task and its images; null: the seed of the run, so that each "
        "seed of a sweep has a task of its own.",
    )


def _with_default(key: str, default: int) -> Any:
    """Return the key of a synthetic task with another default."""
    return Field(default=default, description=SyntheticTask.model_fields[key].description)


class SignalDistribution(SyntheticTask):
    """Dynamic Signal Distribution (Lahoti 2024): one of k patches carries a signal, the others only noise.

    The label is the sign of the signal. A layer sees one patch per position with model.kernel_size=[[d,1]]
    model.stride=[[d,1]].
    """

    name: Literal["signal_distribution"] = Field(
        default="signal_distribution",
        description="The data set: signals in which one patch carries a pattern with a positive or "
        "negative sign (Lahoti 2024).",
    )
    patches: Size = Field(default=8, description="The number k of patches per signal.")
    dimension: Size = Field(default=8, description="The number d of values per patch.")
    noise: Deviation = Field(
        default=0.25,
        description="The standard deviation of the noise on all patches, on a scale where the pattern has "
        "norm 1.",
    )
    images: Size = _with_default("images", 8_192)


class ChannelNorm(SyntheticTask):
    """Gaussian images, labelled by which of two channels has the larger norm (Li, Zhang and Arora 2021)."""

    name: Literal["channel_norm"] = Field(
        default="channel_norm",
        description="The data set: Gaussian images, labelled by which of the red and green channels has "
        "the larger norm (Li, Zhang and Arora 2021).",
    )
    side: Size = Field(default=16, description="The side d of the images, in pixels. They have 3 channels.")


class KPatterns(SyntheticTask):
    """Bit strings, labelled by a function of k consecutive bits (Malach and Shalev-Shwartz 2021)."""

    name: Literal["k_patterns"] = Field(
        default="k_patterns",
        description="The data set: strings of n bits, labelled by a function of k consecutive bits at an "
        "unknown position (Malach and Shalev-Shwartz 2021).",
    )
    length: Size = Field(default=60, description="The number n of bits per input.")
    pattern: Size = Field(default=5, description="The number k of bits that determine the label.")
    function: Literal["parity", "random"] = Field(
        default="parity", description="The function of these bits: their parity, or a random function."
    )


class NonlinearGaussian(SyntheticTask):
    """Translation-invariant images, labelled by their correlation length (Ingrosso and Goldt 2022)."""

    name: Literal["nonlinear_gaussian"] = Field(
        default="nonlinear_gaussian",
        description="The data set: images of a Gaussian process that a saturating function is applied to, "
        "labelled by their correlation length (Ingrosso and Goldt 2022).",
    )
    side: Size = Field(
        default=20, description="The side of the images, in pixels, or the length of the signals."
    )
    dimensions: Literal[1, 2] = Field(
        default=2,
        description="The number of dimensions. 2: images of `side` x `side` pixels. 1: signals of `side` "
        "points.",
    )
    correlation_lengths: Annotated[
        list[Positive], Field(min_length=2), AllowedText("a list with one number per class")
    ] = Field(
        default=[1.0, 2.0],
        description="The correlation length of the Gaussian process in each class, in pixels: the distance "
        "at which the correlation of two pixels has fallen to 1/e.",
    )
    gain: Positive = Field(
        default=3.0,
        description="The gain of the saturating function: images with a large gain have sharp edges, those "
        "with a small one are almost Gaussian.",
    )
    gaussian_clone: bool = Field(
        default=False,
        description="Whether images are replaced by Gaussian ones with the same mean and covariance in each "
        "class.",
    )


class MNIST1D(SyntheticTask):
    """One-dimensional digits, padded, scaled, shifted, sheared and covered with noise (Greydanus 2020)."""

    name: Literal["mnist1d"] = Field(
        default="mnist1d", description="The data set: MNIST-1D, signals of ten classes (Greydanus 2020)."
    )
    length: Size = Field(default=40, description="The number of points per signal.")
    padding: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(
        default=[36, 60],
        description="The minimum and maximum number of zeros appended to the 12 points of a template.",
    )
    scale: Deviation = Field(
        default=0.4, description="The width of the range around 1 that amplitudes are drawn from."
    )
    translation: Size = Field(default=48, description="The number of possible cyclic shifts of a template.")
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
    images: Size = _with_default("images", 4_000)
    test_images: Size = _with_default("test_images", 1_000)


class RandomHierarchy(SyntheticTask):
    """The Sparse Random Hierarchy Model (Tomasini and Wyart 2024): signals that a random grammar produces.

    A class is replaced by one of its m tuples of s symbols, each of these by one of its own m tuples, and so
    on for L levels. With `places` above 1, each symbol lies among s0 = `places` - 1 zeros, which produce only
    zeros. A signal has (s * places)^L points, and a channel for each of the v symbols of the last level.
    """

    name: Literal["random_hierarchy"] = Field(
        default="random_hierarchy",
        description="The data set: signals that a random hierarchical grammar produces, with zeros between "
        "their symbols (Tomasini and Wyart 2024).",
    )
    classes: Annotated[int, Field(ge=2)] = Field(default=4, description="The number of classes.")
    vocabulary: Annotated[int, Field(ge=2)] = Field(
        default=4, description="The number v of symbols of each level."
    )
    synonyms: Size = Field(
        default=4,
        description="The number m of tuples that a class or symbol may be replaced by. No two of them have a "
        "tuple in common.",
    )
    branching: Size = Field(default=2, description="The number s of symbols per tuple.")
    depth: Size = Field(default=2, description="The number L of levels.")
    places: Size = Field(
        default=1,
        description="The number s0 + 1 of places per symbol: it takes one of them, and the others hold "
        "zeros. 1: no zeros, the Random Hierarchy Model (Cagnetta 2024).",
    )
    placement: Literal["block", "patch"] = Field(
        default="block",
        description="Where the symbols of a tuple lie in its patch of s * `places` points. `block`: each at "
        "a random place in a block of its own (sparsity A). `patch`: anywhere, in their order (sparsity B).",
    )


class Teacher(SyntheticTask):
    """Gaussian signals, labelled by a random network with one tied layer, the teacher.

    The layer is rectified and averaged over its positions. The class is the largest of its random linear
    functions, each shifted and scaled so that classes are about equally frequent.
    """

    name: Literal["teacher"] = Field(
        default="teacher", description="The data set: Gaussian signals, labelled by a random network."
    )
    tying: TyingText = Field(
        default="shared",
        description="How output positions of the teacher use kernels, as `model.tying` of a student.",
    )
    length: Size = Field(default=70, description="The number of points per signal.")
    kernel_size: Size = Field(
        default=3, description="The number of points that a position of the teacher sees."
    )
    features: Size = Field(default=8, description="The number of output channels of the teacher's layer.")
    classes: Annotated[int, Field(ge=2)] = Field(default=4, description="The number of classes.")
    mixing: Deviation = Field(
        default=1.0,
        description="The standard deviation from which the mixing weights of a `low_rank` teacher are drawn, "
        "before their softmax (1: as Zhou 2021). 0: all positions mix kernels equally.",
    )


# The sections by the names of their data sets.
SYNTHETIC_VARIANTS: dict[str, type[DataSection]] = {
    "signal_distribution": SignalDistribution,
    "channel_norm": ChannelNorm,
    "k_patterns": KPatterns,
    "nonlinear_gaussian": NonlinearGaussian,
    "mnist1d": MNIST1D,
    "random_hierarchy": RandomHierarchy,
    "teacher": Teacher,
}
