"""The permutation test: random routing is called random, a planted specialisation is found."""

from __future__ import annotations

import numpy as np
import pytest

from moekit_report.specialisation import information, specialisation

LABELS = np.repeat(np.arange(4), 12)


def random_loads(generator: np.random.Generator, layers: int = 3) -> dict[str, np.ndarray]:
    """Routing that knows nothing of domains, but in which tokens of one sequence resemble each other."""
    loads = {}
    for layer in range(layers):
        taste_NE = generator.dirichlet(np.full(16, 0.5), size=len(LABELS))  # each sequence has its own experts
        loads[f"layer {layer}"] = np.stack([generator.multinomial(128, taste_E) for taste_E in taste_NE])
    return loads


def test_random_routing_is_called_random_in_94_of_100_trials_and_more() -> None:
    generator = np.random.default_rng(1)
    random = cells = 0
    for trial in range(100):
        found = specialisation(random_loads(generator), LABELS, permutations=299, seed=trial).values()
        random += not any(each.is_found for each in found)
        cells += not any(each.high_XE.any() for each in found)
    assert random >= 94 and cells >= 94


def test_a_planted_specialisation_is_found_in_its_layer_and_cell() -> None:
    generator = np.random.default_rng(2)
    loads = random_loads(generator)
    loads["layer 1"][LABELS == 2, 5] += 60
    found = specialisation(loads, LABELS)
    assert {name: each.is_found for name, each in found.items()} == {
        "layer 0": False,
        "layer 1": True,
        "layer 2": False,
    }
    planted = found["layer 1"]
    assert planted.p == pytest.approx(1 / 1000) and planted.bits > planted.chance
    assert np.argwhere(planted.high_XE).tolist() == [[2, 5]]
    assert planted.entropy_E.argmin() == 5 and 0 < planted.entropy_E.min() < planted.entropy_E.max() <= 2


def test_information_is_that_of_the_definition() -> None:
    assert information(np.full((3, 8), 1 / 8)) == pytest.approx(0)
    assert information(np.eye(4)) == pytest.approx(2)
    half = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    joint = half / 2
    expected = sum(
        joint[x, e] * np.log2(joint[x, e] / (joint[x].sum() * joint[:, e].sum()))
        for x in range(2)
        for e in range(3)
        if joint[x, e]
    )
    assert information(half) == pytest.approx(expected)


def test_one_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="two domains at least"):
        specialisation({"a": np.ones((3, 2))}, [1, 1, 1])
