"""Which recipes have a model in transformers that a plain loop trains alike; the library is not needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import model_of

from moekit import load
from moekit.errors import MoekitError
from moekit_bench.peers.transformers import check_trained_alike, exported, loaded


def test_a_recipe_that_trains_more_than_their_model_is_rejected_with_its_differences() -> None:
    check_trained_alike(load("deepseek_v3", ["model.mtp=null"]))
    said = r"does not train as this recipe does\n  model\.mtp=\{'depth': 1\} \(expected None\)\Z"
    with pytest.raises(MoekitError, match=said):
        check_trained_alike(load("deepseek_v3"))
    with pytest.raises(MoekitError, match=r"objective\.use=competitive \(expected 'causal_lm'\)"):
        check_trained_alike(load("jacobs1991"))


def test_a_model_that_no_format_has_is_rejected(tmp_path: Path) -> None:
    recipe = load("shazeer2017")
    with pytest.raises(MoekitError, match="can express this model"):
        exported(recipe, model_of(recipe.model), tmp_path)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_their_model_has_our_weights(implementation: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    small = ["model.mtp=null", "model.depth=2", "model.dim=32", "model.moe.experts={use: glu, count: 8, hidden: 16}"]
    recipe = load("deepseek_v3", [*small, "model.moe.shared.hidden=16", "model.moe.router.top_k=2"])
    ours = model_of(recipe.model)
    theirs = loaded(exported(recipe, ours, tmp_path), implementation)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(tokens).y, theirs(tokens).logits, rtol=1e-4, atol=1e-5)
