"""The dense twin of a mixture: the recipe of the model that it is compared with."""

from __future__ import annotations

from dataclasses import fields, replace

from moekit.errors import Problem, SpecError
from moekit.spec.recipe import Recipe


def dense_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the dense model to compare with: same data, seed, steps and schedule. None where there is none.

    Raises:
        SpecError: ``compare.lr`` is given, but the optimizer has no ``lr``.
    """
    assert recipe.compare is not None
    twin = recipe.model.dense_baseline()
    if twin is None:
        return None
    optimizer = recipe.optimizer
    if recipe.compare.lr is not None and optimizer is not None:
        if "lr" not in {f.name for f in fields(optimizer)}:  # type: ignore[arg-type]
            raise SpecError([Problem(what="the optimizer has no option 'lr' to set", at="compare.lr")])
        optimizer = replace(optimizer, lr=recipe.compare.lr)  # type: ignore[type-var]
    return replace(recipe, model=twin, optimizer=optimizer, compare=None, stop=None)
