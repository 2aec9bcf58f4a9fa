"""The Sparse Random Hierarchy Model (Tomasini and Wyart 2024): signals that a random grammar produces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jaxtyping import Array, Float, Int, Key

from cnnexp.config.synthetic import RandomHierarchy
from cnnexp.core.errors import UsageError
from cnnexp.data.datasets.synthetic import Inputs, SyntheticSet, Task
from cnnexp.data.registry import register_dataset

MAX_TUPLES = 2**20  # that a level may choose from
ZERO = -1  # stands for a symbol where there is none

Rules = tuple[Int[Array, "_ m s"], ...]  # of each level: the tuples that replace each parent


@register_dataset(RandomHierarchy)
class HierarchySet(SyntheticSet[RandomHierarchy]):
    """Signals of the last level of a grammar, in a repeating order of the classes."""

    def describe_inputs(self) -> Inputs:
        """Return the shape of a signal, which has one channel per symbol."""
        data = self.data
        return Inputs(((data.branching * data.places) ** data.depth, 1, data.vocabulary), data.classes)

    def make_task(self, task_key: Key[Array, ""]) -> Task:
        """Draw the grammar, which all signals have in common."""
        return Task(partial(_draw_signal, self.data), draw_rules(self.data, task_key))

    def check_keys(self) -> None:
        """Check that there are enough tuples for every parent to have its own."""
        data = self.data
        tuples = data.vocabulary**data.branching
        if tuples > MAX_TUPLES:
            raise UsageError(
                f"data.branching={data.branching}: with data.vocabulary={data.vocabulary} there are "
                f"{data.vocabulary}**{data.branching} tuples; must be at most {MAX_TUPLES:,}"
            )
        key = "classes" if data.depth == 1 or data.classes > data.vocabulary else "vocabulary"
        parents = getattr(data, key)
        if parents > tuples:
            raise UsageError(f"data.{key}={parents}: must be at most {tuples}, the number of tuples")
        if data.synonyms * parents > tuples:
            raise UsageError(
                f"data.synonyms={data.synonyms}: {data.vocabulary}**{data.branching} = {tuples} tuples are "
                f"too few for data.{key}={parents}, each with its own; must be at most {tuples // parents}"
            )


def draw_rules(data: RandomHierarchy, key: Key[Array, ""]) -> Rules:
    """Draw the tuples that replace each class, and each symbol of each level but the last.

    The tuples of a level are drawn without replacement, so that each has one parent.
    """
    digits = data.vocabulary ** np.arange(data.branching)
    rules = []
    for level, level_key in enumerate(random.split(key, data.depth)):
        parents = data.vocabulary if level else data.classes
        tuples = random.permutation(level_key, data.vocabulary**data.branching)[: parents * data.synonyms]
        symbols = tuples[:, None] // digits % data.vocabulary
        rules.append(symbols.reshape(parents, data.synonyms, data.branching))
    return tuple(rules)


def _draw_signal(
    data: RandomHierarchy, rules: Rules, key: Key[Array, ""], number: Int[Array, ""]
) -> tuple[Float[Array, "n 1 v"], Int[Array, ""]]:
    """Replace a class by its symbols, level by level (Tomasini and Wyart 2024, section 3)."""
    label = number % data.classes
    symbols = label[None]
    for tuples, level_key in zip(rules, random.split(key, data.depth), strict=True):
        choice_key, place_key = random.split(level_key)
        choices = random.randint(choice_key, symbols.shape, 0, data.synonyms)
        children = jnp.where(symbols[:, None] == ZERO, ZERO, tuples[symbols, choices])
        patches = jnp.full((len(symbols), data.branching * data.places), ZERO)
        places = _draw_places(data, place_key, len(symbols))
        symbols = jnp.put_along_axis(patches, places, children, axis=1, inplace=False).ravel()
    return jax.nn.one_hot(symbols, data.vocabulary)[:, None], label


def _draw_places(data: RandomHierarchy, key: Key[Array, ""], patches: int) -> Int[Array, "patches s"]:
    """Draw the points of the symbols in each patch, in rising order."""
    s, places = data.branching, data.places
    if data.placement == "block":
        return places * jnp.arange(s) + random.randint(key, (patches, s), 0, places)
    order = jnp.argsort(random.uniform(key, (patches, s * places)), axis=1)
    return jnp.sort(order[:, :s], axis=1)
