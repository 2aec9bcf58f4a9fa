"""Tyings: their texts, the kernel of each position, and the counts of weights, connections and MACs."""

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnexp.nn.geometry import Geometry
from cnnexp.nn.probes import equivalent_matrix
from cnnexp.nn.tying import Tying, count_layer, kernel_index
from tests.layer_cases import BIASES, FEW, TYINGS, build_filled_layer, geometries, taps_by_hand


@settings(FEW, max_examples=10)
@given(
    geometries(connectivity=("local", "random")),
    st.sampled_from([tying for tying in TYINGS if "low_rank" not in tying]),
    st.sampled_from(BIASES),
)
def test_counts_equal_brute_force(geometry: Geometry, tying: str, bias: str) -> None:
    @jax.jit
    def matrix_and_params() -> tuple[jax.Array, nnx.State]:
        layer = build_filled_layer(geometry, tying, bias)
        return equivalent_matrix(layer, geometry.in_shape), nnx.state(layer, nnx.Param)

    counts, (matrix, params) = count_layer(geometry, tying, bias), matrix_and_params()
    matrix, weights = np.asarray(matrix), params["bank"][...].size
    assert matrix.shape == (geometry.out_units, geometry.in_units)
    assert counts.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counts.weights == weights
    assert counts.connections == counts.macs == np.count_nonzero(matrix)
    if tying != "dense":
        assert counts.connections == len(taps_by_hand(geometry)) * geometry.in_shape[2] * geometry.features
    assert counts.sparsity == pytest.approx(np.mean(matrix == 0), abs=1e-12)
    assert counts.sharing == pytest.approx(np.count_nonzero(matrix) / weights)


@FEW
@given(
    geometries(), st.sampled_from([tying for tying in TYINGS if "low_rank" in tying]), st.sampled_from(BIASES)
)
def test_counts_of_low_rank_are_those_of_its_kernels_and_mixtures(
    geometry: Geometry, tying: str, bias: str
) -> None:
    counts, rank = count_layer(geometry, tying, bias), Tying.parse(tying).size
    params = nnx.state(build_filled_layer(geometry, tying, bias), nnx.Param)
    assert counts.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    shared = count_layer(geometry, "shared", bias)
    assert counts.connections == shared.connections
    assert counts.macs == rank * (shared.macs + geometry.out_units)
    (oh, ow) = geometry.out_size
    mixing = rank * oh * ow if "full" in tying else rank * (oh + ow)
    assert counts.weights == rank * shared.weights + mixing


def test_only_texts_of_tyings_are_parsed() -> None:
    for tying in (*TYINGS, "tiled(12)"):
        assert str(Tying.parse(tying)) == tying
    assert str(Tying.parse(" low_rank( 2 , free , separable )")) == "low_rank(2,free)"
    assert str(Tying.parse("low_rank(2,softmax,full)")) == "low_rank(2,full)"
    for wrong in (
        "tiled",
        "tiled(0)",
        "tiled(00)",
        "shared(2)",
        "tiled(2,free)",
        "low_rank(2,fre)",
        "locall",
    ):
        with pytest.raises(ValueError, match=r"not a tying: .*; allowed: shared, tiled\(t\)"):
            Tying.parse(wrong)


@pytest.mark.parametrize("pair", ["softmax and free", "separable and full"])
def test_options_that_contradict_each_other_are_refused(pair: str) -> None:
    text = f"low_rank(2,{pair.replace(' and ', ',')})"
    with pytest.raises(ValueError, match=f"{pair} contradict each other") as refusal:
        Tying.parse(text)
    assert text in str(refusal.value)


def test_tiles_alternate_and_blocks_are_regions() -> None:
    geometry = Geometry(in_shape=(4, 6, 1), features=1, kernel_size=(1, 1))
    tiles = kernel_index(geometry, Tying.parse("tiled(2)"))
    assert tiles.tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 2, 3, 2, 3]] * 2
    blocks = kernel_index(geometry, Tying.parse("blocked(2)"))
    assert blocks.tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2


def test_counts_are_those_worked_out_by_hand() -> None:
    """A 3x3 kernel from 16 to 32 features on 14x14 images."""
    geometry = Geometry(in_shape=(14, 14, 16), features=32, kernel_size=(3, 3))
    taps = (3 * 14 - 2) ** 2  # of 9 * 196, those on pixels
    shared, local, dense = (count_layer(geometry, tying, "shared") for tying in ("shared", "local", "dense"))
    assert (shared.params, local.params, dense.params) == (4_640, 903_200, 19_669_024)
    assert shared.connections == local.connections == shared.macs == taps * 16 * 32
    assert dense.connections == dense.weights == (14 * 14 * 16) * (14 * 14 * 32)
    assert (dense.sparsity, dense.sharing) == (0, 1)
    assert shared.sharing == pytest.approx(taps / 9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel_size": (3, 6)}, r"kernel_size=3x6 is larger than the 4x5 image"),
        ({"stride": (0, 1)}, r"stride=\(0, 1\): must be at least 1"),
        ({"features": 0}, r"features=0: must be at least 1"),
    ],
)
def test_impossible_geometries_are_refused(wrong: dict[str, int], message: str) -> None:
    possible = {"in_shape": (4, 5, 1), "features": 2, "kernel_size": (3, 3)}
    with pytest.raises(ValueError, match=message):
        Geometry(**(possible | wrong))
