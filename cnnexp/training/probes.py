"""Probes of a network as a function of images: consistency under shifts, relative stability, users' own.

They are measured on test images after the last step, and once more on the network as it was initialised.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, Int, Key

from cnnexp.config import RunConfig
from cnnexp.config.model import Head
from cnnexp.core.errors import UsageError, describe_exception, shorten_value, suggestion
from cnnexp.core.user_code import is_import_path, load_function
from cnnexp.data.shapes import infer_shape

Maps = Float[Array, "b h w c"]
Network = Callable[[Maps], Float[Array, "b classes"]]
Measures = Mapping[str, Float[Array, ""]]
Probe = Callable[[Network, Maps, Key[Array, ""]], Float[Array, ""] | Measures]

PROBED_IMAGES = 512  # the first test images
PAIRS = 4  # of shifts of each image
SHIFTED_FRACTION = 1 / 8  # of the side of an image: the largest shift
DEFORMATIONS = 4  # of each image
DISPLACEMENT = 1.0  # pixels: the root mean square displacement of a deformation
CUT_OFF = 3  # the highest frequency of a deformation, in half waves per side


def probe_shift_consistency(network: Network, images: Maps, key: Key[Array, ""], *, head: Head) -> Measures:
    """Measure the fraction of pairs of random shifts of an image that get the same answer (Zhang 2019).

    Shifts are up to an eighth of the side, and at least one pixel, along each axis.

    Args:
        network: The network, from normalised images to logits.
        images: Images as the network sees them.
        key: Draws the shifts.
        head: `softmax` answers with the likeliest class, `sigmoid` with all labels likelier than not.

    Returns:
        `circular`: pixels that leave on one side come back on the other; `border`: the pixels at the edge are
        repeated.
    """
    limits = jnp.array(
        [max(1, int(side * SHIFTED_FRACTION)) if side > 1 else 0 for side in images.shape[1:3]]
    )

    def compare(key: Key[Array, ""]) -> dict[str, Array]:
        pair = [random.randint(part, (len(images), 2), -limits, limits + 1) for part in random.split(key)]
        consistent = {}
        for name, circular in (("circular", True), ("border", False)):
            move = jax.vmap(partial(_shift_image, circular=circular))
            first, second = (_answer(network(move(images, shifts)), head) for shifts in pair)
            consistent[name] = (first == second).all(-1).mean()
        return consistent

    return jax.tree.map(jnp.mean, lax.map(compare, random.split(key, PAIRS)))


def probe_stability(network: Network, images: Maps, key: Key[Array, ""]) -> Measures:
    """Measure the stability towards smooth deformations relative to noise (Petrini 2021, 2105.02468).

    Args:
        network: The network, from normalised images to logits.
        images: Images as the network sees them.
        key: Draws the deformations and the noise.

    Returns:
        `deformation`: the mean squared change of the logits under a deformation with a root mean square
        displacement of one pixel, see `deform_image`, over the mean squared distance of the logits of two
        images. `noise`: the same under Gaussian noise with the same mean squared norm as the change of the
        image. `ratio`: R_f, the first over the second.
    """
    logits = network(images)
    spread = 2 * jnp.square(logits - logits.mean(0)).sum(-1).mean() * len(images) / max(1, len(images) - 1)

    def change(new: Maps) -> Float[Array, ""]:
        return jnp.square(network(new) - logits).sum(-1).mean()

    def draw(key: Key[Array, ""]) -> tuple[Array, Array]:
        deformation_key, noise_key = random.split(key)
        deformed = jax.vmap(deform_image)(images, random.split(deformation_key, len(images)))
        deviation = jnp.sqrt(jnp.square(deformed - images).mean())
        noisy = images + deviation * random.normal(noise_key, images.shape)
        return change(deformed), change(noisy)

    by_deformation, by_noise = (values.mean() for values in lax.map(draw, random.split(key, DEFORMATIONS)))
    return {
        "deformation": by_deformation / spread,
        "noise": by_noise / spread,
        "ratio": by_deformation / by_noise,
    }


def deform_image(
    image: Float[Array, "h w c"], key: Key[Array, ""], displacement: float = DISPLACEMENT
) -> Float[Array, "h w c"]:
    """Deform an image by a random smooth displacement of its pixels, with bilinear interpolation.

    Each component of the displacement is a sum of products of sine waves with i and j half waves down and
    across, of all i and j with i² + j² at most `CUT_OFF`², with Gaussian weights of variance 1 / (i² + j²):
    the displacement with the largest entropy for its gradient (Petrini 2021, section 2). It is zero at the
    edges.

    Args:
        image: The image, at least two pixels high and wide.
        key: Draws the weights.
        displacement: The root mean square of the length of the displacement, in pixels.
    """
    height, width, _ = image.shape
    frequency = jnp.arange(1, CUT_OFF + 1)
    squares = frequency[:, None] ** 2 + frequency**2
    variance = jnp.where(squares <= CUT_OFF**2, 1 / squares, 0)
    waves = [
        jnp.sin(jnp.pi * frequency[:, None] * (jnp.arange(side) + 0.5) / side) for side in (height, width)
    ]
    weights = jnp.sqrt(variance) * random.normal(key, (2, CUT_OFF, CUT_OFF))
    field = jnp.einsum("dij,ih,jw->dhw", weights, *waves)
    # The mean square of a component is a quarter of the sum of the variances; there are two components.
    field *= displacement / jnp.sqrt(variance.sum() / 2)
    coordinates = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")) + field
    sample = partial(map_coordinates, coordinates=list(coordinates), order=1, mode="nearest")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def measure_probes(
    probes: Mapping[str, Probe],
    networks: Mapping[str, Network],
    images: Maps,
    key: Key[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """Measure all probes of several networks on the same images, with the same random numbers.

    Args:
        probes: The probes, see `resolve_probes`.
        networks: The networks, by the first word of the names of their measures.
        images: Images as the networks see them.
        key: Draws random numbers.

    Returns:
        By names in a summary, such as `learned/stability/ratio`; the measure of a probe that has only one has
        the name `learned/<probe>`.
    """
    measures: dict[str, Float[Array, ""]] = {}
    for number, (name, probe) in enumerate(probes.items()):
        for prefix, network in networks.items():
            values = probe(network, images, random.fold_in(key, number))
            named = values if isinstance(values, Mapping) else {"": values}
            for part, value in named.items():
                measures[f"{prefix}/{name}{part and f'/{part}'}"] = jnp.asarray(value, jnp.float32)
    return measures


def resolve_probes(config: RunConfig) -> dict[str, Probe]:
    """Return the probes of `train.probes` by the names that their measures have.

    Raises:
        UsageError: There is no such probe, or it cannot be measured on these images.
    """
    probes: dict[str, Probe] = {}
    for typed in config.train.probes:
        name = typed.rpartition(":")[2]
        if name in probes:
            raise UsageError(f"train.probes={shorten_value(config.train.probes)}: {name} is listed twice")
        probes[name] = _load_probe(typed, config) if is_import_path(typed) else _build_probe(name, config)
    return probes


def list_probes() -> tuple[str, ...]:
    """List the names of the built-in probes that `train.probes` takes."""
    return ("shift_consistency", "stability")


def _build_probe(name: str, config: RunConfig) -> Probe:
    typed = f"train.probes={shorten_value(config.train.probes)}"
    if name == "shift_consistency":
        return partial(probe_shift_consistency, head=config.model.head)
    if name == "stability":
        height, width, _ = infer_shape(config.data).image
        if min(height, width) < 2:
            raise UsageError(f"{typed}: stability needs images of at least 2x2 pixels (got {height}x{width})")
        return probe_stability
    raise UsageError(f"{typed}: {name}: {suggestion(name, list_probes())}; or MODULE:FUNCTION")


def _load_probe(path: str, config: RunConfig) -> Probe:
    """Load a probe of the user, and refuse it if it does not return numbers."""
    function, shape = load_function("train.probes", path), infer_shape(config.data)

    def call(key: Key[Array, ""], images: Maps) -> Any:
        return function(lambda x: jnp.zeros((len(x), shape.classes)) + x.sum(), images, key)

    try:
        images = jax.ShapeDtypeStruct((3, *shape.image), jnp.float32)
        values = jax.eval_shape(call, jax.eval_shape(lambda: random.key(0)), images)
    except Exception as error:
        reason = describe_exception(error)
        raise UsageError(f"train.probes={path}: cannot be computed ({reason})") from error
    named = values if isinstance(values, Mapping) else {"": values}
    for part, value in named.items():
        if getattr(value, "shape", None) != () or not (part == "" or str(part).isidentifier()):
            raise UsageError(
                f"train.probes={path}: must return a number, or numbers by names "
                f"(got {type(values).__name__ if not isinstance(values, Mapping) else repr(part)})"
            )
    return function


def _answer(logits: Float[Array, "b classes"], head: Head) -> Int[Array, "b 1"] | Bool[Array, "b classes"]:
    return logits.argmax(-1)[:, None] if head == "softmax" else logits > 0


def _shift_image(
    image: Float[Array, "h w c"], shift: Int[Array, "2"], *, circular: bool
) -> Float[Array, "h w c"]:
    indices = [jnp.arange(side) - move for side, move in zip(image.shape[:2], shift, strict=True)]
    row, column = (
        index % side if circular else index.clip(0, side - 1)
        for index, side in zip(indices, image.shape[:2], strict=True)
    )
    return image[row][:, column]
