"""Views of tensors and rows of tables: each view has an inverse, and shapes are those of both sides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_hf.fields import FormatError
from moekit_hf.rules import SAME, TRANSPOSED, Ignored, Rows, Rule, View, interleaved_halves, rotary_pairs
from moekit_hf.weights import Table

VIEWS: list[tuple[View, tuple[int, ...]]] = [
    (SAME, (6, 4)),
    (TRANSPOSED, (6, 4)),
    (interleaved_halves(6), (6, 4)),
    (TRANSPOSED.then(interleaved_halves(6)), (6, 4)),
    (interleaved_halves(6), (6,)),
    (rotary_pairs(3, 2, 4), (18, 5)),
]


@pytest.mark.parametrize(("view", "ours"), VIEWS)
def test_a_view_and_its_inverse_change_nothing(view: View, ours: tuple[int, ...]) -> None:
    here = torch.randn(ours)
    there = view.to_theirs(here)
    assert tuple(there.shape) == view.theirs_shape(ours)
    assert torch.equal(view.to_ours(there), here)
    assert torch.equal(view.to_theirs(view.to_ours(there)), there)


@given(st.permutations(range(9)))
@settings(max_examples=20, deadline=None)
def test_rows_in_any_order(order: list[int]) -> None:
    view, theirs = Rows(tuple(order)), torch.arange(9.0)[:, None]
    assert view.to_ours(theirs)[:, 0].tolist() == order
    assert torch.equal(view.to_theirs(view.to_ours(theirs)), theirs)


def test_interleaved_rows_become_halves() -> None:
    assert interleaved_halves(6).order == (0, 2, 4, 1, 3, 5)
    # two heads of one plain row and two rotary pairs
    assert rotary_pairs(2, 1, 4).order == (0, 1, 3, 2, 4, 5, 6, 8, 7, 9)


OURS = {"embedding.weight": (7, 4), "blocks.0.w_EHD": (2, 6, 4), "blocks.3.w_EHD": (2, 6, 4)}
EMBEDDING = Rule("embed", "embedding.weight")
GATE = Rule("layers.{i}.experts.{e}.gate", "blocks.{i}.w_EHD", half=0, lead="each")
UP = Rule("layers.{i}.experts.{e}.up", "blocks.{i}.w_EHD", half=1, lead="each")


def test_a_table_is_expanded_over_layers_and_experts() -> None:
    table = Table("tiny", [EMBEDDING, GATE, UP], OURS)
    assert len(table.theirs) == 1 + 2 * 2 * 2
    assert table.theirs["layers.3.experts.1.up"][0].theirs_shape == (3, 4)
    shapes = {name: links[0].theirs_shape for name, links in table.theirs.items()}
    assert table.check_names(shapes, (), "here") == {}


def test_stacked_experts_are_one_tensor_of_theirs() -> None:
    stacked = Rule("layers.{i}.experts", "blocks.{i}.w_EHD", view=TRANSPOSED, lead="stack")
    table = Table("tiny", [EMBEDDING, stacked], OURS)
    assert table.theirs["layers.0.experts"][0].theirs_shape == (2, 4, 6)
    theirs = torch.randn(2, 4, 6)

    def read(name: str, offset: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
        assert sizes == (1, 4, 6)  # one expert at a time
        return theirs[offset[0] : offset[0] + 1]

    assert torch.equal(torch.stack(list(table.pieces("blocks.0.w_EHD", read))), theirs.mT)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([GATE, UP], r"no rule of its table fills our tensor 'embedding\.weight' \[7, 4\]"),
        ([EMBEDDING, GATE], r"does not fill the rows of 'blocks\.0\.w_EHD', expert 0 exactly once"),
        ([EMBEDDING, GATE, UP, UP], "exactly once"),
        (
            [EMBEDDING, Rule("embed", "blocks.{i}.w_EHD", lead="stack")],
            "two rules of its table name the tensor 'embed'",
        ),
        ([EMBEDDING, Rule("layers.{i}.w", "blocks.{i}.w_EHD", lead="one")], "two rules of its table name"),
    ],
)
def test_a_table_that_does_not_fill_everything_once_is_refused(rules: list[Rule], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Table("tiny", rules, OURS)


def test_tensors_of_a_folder_are_named_when_they_do_not_fit() -> None:
    table = Table("tiny", [EMBEDDING, GATE, UP], OURS)
    shapes = {name: links[0].theirs_shape for name, links in table.theirs.items()}
    del shapes["layers.0.experts.1.up"]
    shapes |= {"layers.0.experts.1.upp": (3, 4), "embed": (4, 7), "rotary.inv_freq": (2,)}
    with pytest.raises(FormatError, match=r"missing: layers\.0\.experts\.1\.up") as caught:
        table.check_names(shapes, [Ignored(r"rotary\..*", "angles")], "here")
    for line in (
        "not of this family: layers.0.experts.1.upp",
        "of another shape: embed is [4, 7], expected [7, 4]",
        "did you mean 'layers.0.experts.1.up'?",
    ):
        assert line in str(caught.value)
    assert "inv_freq" not in str(caught.value)
