"""Whether experts specialise in domains, by a permutation test: random routing must not look like meaning.

Tokens of one text resemble each other, so whole sequences are the units: the test permutes the labels of sequences.
One set of permutations serves all layers. A layer counts as specialised only if its mutual information is beyond what
the *best* layer has in 99 of 100 permutations, and so does a cell of a table. So a whole report has a
false finding with a probability of at most 1 %, however many layers and experts there are (Westfall and Young 1993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 999
LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Specialisation:
    """Of one layer. X domains, E experts.

    Attributes:
        share_XE: the share of each expert in the pairs of each domain; rows sum to 1.
        bits: mutual information of expert and domain, all domains weighted equally.
        chance: its 99th percentile over permutations of this layer.
        p: probability that the best layer has as much under random labels, at least 1 / (permutations + 1).
        high_XE: bool, cells that are higher than chance allows.
    """

    share_XE: np.ndarray
    bits: float
    chance: float
    p: float
    high_XE: np.ndarray

    @property
    def is_found(self) -> bool:
        """Whether the layer is specialised, by the test."""
        return self.p <= LEVEL

    @property
    def entropy_E(self) -> np.ndarray:
        """Of each expert, the entropy in bits of the domain of its pairs, all domains weighted equally."""
        of_XE = self.share_XE / np.maximum(self.share_XE.sum(0), 1e-12)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(-np.where(of_XE > 0, of_XE * np.log2(of_XE), 0.0).sum(0))


def information(share_XE: np.ndarray) -> np.ndarray:
    """Mutual information in bits between a uniformly chosen row and its expert, for shares ``[..., X, E]``."""
    mean_1E = share_XE.mean(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(share_XE > 0, share_XE * np.log2(share_XE / mean_1E), 0.0)
    return np.asarray(terms.sum((-2, -1)) / share_XE.shape[-2])


def specialisation(
    load_NE: Mapping[str, np.ndarray], domain_N: Sequence[int], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Specialisation]:
    """Tests all layers together.

    Args:
        load_NE: of each layer, the load of each expert in each of N sequences.
        domain_N: the domain of each sequence, 0 to X - 1.
        permutations: of the labels.
        seed: of the permutations.

    Raises:
        ValueError: fewer than two domains have a sequence.
    """
    label_N = np.unique(np.asarray(domain_N), return_inverse=True)[1]
    X = int(label_N.max(initial=-1)) + 1
    if X < 2:
        raise ValueError("a test of domains needs sequences of two domains at least")
    generator = np.random.default_rng(seed)
    labels = np.stack([label_N, *(generator.permutation(label_N) for _ in range(permutations))])
    onehot_PXN = (labels[:, None, :] == np.arange(X)[None, :, None]).astype(np.float64)
    shares = {name: _shares(onehot_PXN @ np.asarray(load, np.float64)) for name, load in load_NE.items()}
    bits = {name: information(share_PXE) for name, share_PXE in shares.items()}
    scores = {name: _standardised(each) for name, each in bits.items()}
    cells = {name: _standardised(share_PXE) for name, share_PXE in shares.items()}
    best_P = np.max([score[1:] for score in scores.values()], axis=0)
    best_cell_P = np.max([cell[1:].max((1, 2)) for cell in cells.values()], axis=0)
    limit = np.quantile(best_cell_P, 1 - LEVEL)
    return {
        name: Specialisation(
            share_XE=share_PXE[0],
            bits=float(bits[name][0]),
            chance=float(np.quantile(bits[name][1:], 1 - LEVEL)),
            p=float((1 + (best_P >= scores[name][0] - 1e-12).sum()) / (1 + permutations)),
            high_XE=cells[name][0] > limit,
        )
        for name, share_PXE in shares.items()
    }


def _shares(load_PXE: np.ndarray) -> np.ndarray:
    return np.asarray(load_PXE / np.maximum(load_PXE.sum(-1, keepdims=True), 1e-12))


def _standardised(value_P: np.ndarray) -> np.ndarray:
    """Deviations from the mean of the permutations, in their standard deviations; the first entry is the data."""
    deviation = value_P[1:].std(0)
    return np.asarray((value_P - value_P[1:].mean(0)) / np.where(deviation > 0, deviation, np.inf))
