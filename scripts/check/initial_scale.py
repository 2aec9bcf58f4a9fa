#!/usr/bin/env python3
"""Print how large each layer's output is at initialisation, by tying, as a Markdown table.

    scripts/check/initial_scale.py [--networks 50]

Root mean square over test images, positions, features and networks, before the activation, of the network of
`experiment=why_convolutions size=demo`. The table of one run is in docs/statistics.md.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hydra import compose, initialize_config_dir

from cnnexp.config import RunConfig, parse
from cnnexp.core.machine import packaged_folder
from cnnexp.data.loading import load_images
from cnnexp.models.layers import NetworkSpec
from cnnexp.models.network import ACTIVATIONS, TiedNetwork, get_layer
from cnnexp.models.spec import specify_network
from cnnexp.nn.feature_maps import Layout, pool, transpose_layout
from cnnexp.sweep.points import to_dict

TYINGS = ("shared", "local", "dense")
IMAGES = 256


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--networks", type=int, default=50)
    networks = options.parse_args().networks
    configs = {tying: _config(tying) for tying in TYINGS}
    data = load_images(configs["shared"].data)
    mean, std = data.normalisation
    images = (jnp.asarray(data.test_images[:IMAGES], jnp.float32) - mean) / std
    sizes = {tying: scales(specify_network(config), images, networks) for tying, config in configs.items()}
    names = list(sizes["shared"])
    print(f"Root mean square at initialisation over {networks} networks (over that of the convolution)")
    print(f"\n| tying | {' | '.join(names)} |\n{'|---' * (1 + len(names))}|")
    for tying, by_layer in sizes.items():
        cells = (f"{by_layer[name]:.2f} ({by_layer[name] / sizes['shared'][name]:.2f})" for name in names)
        print(f"| {tying} | {' | '.join(cells)} |")


def scales(network: NetworkSpec, images: jax.Array, networks: int) -> dict[str, float]:
    """Return the root mean square of the outputs of each layer, by its name."""

    @jax.jit
    def measure_squares(key: jax.Array) -> dict[str, jax.Array]:
        net, x = TiedNetwork(network, rngs=nnx.Rngs(params=key)), images
        layout: Layout = "NHWC"
        squares: dict[str, jax.Array] = {}
        for spec in network:
            layer = get_layer(net, spec)
            fastest = layer.layout or layout
            x, layout = layer(transpose_layout(x, layout, fastest), fastest), fastest
            squares[spec.name] = jnp.square(x).mean()
            x = pool(ACTIVATIONS[spec.activation](x), spec.pool, spec.pool_size, layout)
        return squares

    measured = [measure_squares(jax.random.key(seed)) for seed in range(networks)]
    return {layer.name: float(np.sqrt(np.mean([m[layer.name] for m in measured]))) for layer in network}


def _config(tying: str) -> RunConfig:
    overrides = ["experiment=why_convolutions", "size=demo", f"model.tying={tying}"]
    with initialize_config_dir(str(packaged_folder("conf")), version_base="1.3"):
        return parse(to_dict(compose("config", overrides)))


if __name__ == "__main__":
    main()
