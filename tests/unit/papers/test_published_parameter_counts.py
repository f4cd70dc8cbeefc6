"""Parameter counts of the recipes at their papers' sizes: each equals the published count, to its rounding.

The models are counted on the meta device, without memory. Where a published number contradicts the published sizes, the
table says what the sizes make.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from moekit.params import ParameterCount, count_parameters
from moekit.spec import load
from moekit_models.encoder_decoder import EncoderDecoder
from moekit_plan.params_cli import rounded_like

EXACT = {
    "deepseek_moe-16b": 16_375_728_128,
    "deepseek_v2-236b": 235_741_434_880,
    "deepseek_v2-lite": 15_706_484_224,
    "deepseek_v3-671b": 671_026_419_200,
}
"""Totals known to the last parameter, from the released models' configurations."""

DECODERS = {
    "glam-64b": (1161.8e9, 96.60e9),
    "glam-8b": (142.94e9, 9.80e9),
    "glam-1.7b": (26.84e9, 1.879e9),
    "glam-1.7b-32e": (13.96e9, 1.878e9),
    "glam-1.7b-128e": (52.62e9, 1.881e9),
    "glam-1.7b-256e": (104.16e9, 1.884e9),
    "glam-0.1b": (1.908e9, 0.1523e9),
    "deepseek_moe-2b": (1.967e9, 0.317e9),
    "deepseek_moe-16b": (16.376e9, 2.829e9),
    "deepseek_moe-145b": (144.621e9, 22.195e9),
    "deepseek_v2-236b": (235.741e9, 20.85e9),
    "deepseek_v2-lite": (15.706e9, 2.451e9),
    "deepseek_v3-671b": (671.026e9, 36.626e9),
    "aux_free-1b": (1.051e9, 0.230e9),
    "aux_free-3b": (2.553e9, 0.463e9),
}
ENCODER_DECODERS = {
    "gshard-600b": (619.27e9, 1.397e9),
    "gshard-200b": (206.42e9, 0.4656e9),
    "gshard-150b": (155.38e9, 1.369e9),
    "gshard-50b": (51.79e9, 0.4562e9),
    "gshard-37b": (39.41e9, 1.361e9),
    "gshard-12b": (13.14e9, 0.4538e9),
    "switch-base": (7.415e9, 0.2241e9),
    "switch-large": (26.31e9, 0.7408e9),
    "switch-xxl": (394.67e9, 11.148e9),
    "switch-c": (1571.4e9, 1.795e9),
    "st_moe-l": (4.106e9, 0.9922e9),
    "st_moe-32b": (269.10e9, 35.07e9),
}
ROWS = DECODERS | ENCODER_DECODERS
"""Total and active parameters computed from the papers' tables of sizes, by a script independent of moekit.

GShard's are without the embedding, because its vocabulary is uncertain.
"""

UNEXPLAINED = {
    "glam-1.7b-32e": {"total": "14B"},  # 20B published; the rows of 64, 128 and 256 experts imply 14B for 32
    "glam-1.7b-256e": {"total": "104B", "active": "1.884B"},  # 105B and 1.886B published
    "glam-0.1b": {"active": "0.152B"},  # 0.145B published
    "deepseek_v2-lite": {"active": "2.5B"},  # 2.4B published: 2.451B without the input embedding, truncated
    "gshard-600b": {"total": "619B"},  # GShard's published totals are all 3 to 7% below what its sizes make
    "gshard-200b": {"total": "206B"},
    "gshard-150b": {"total": "155B"},
    "gshard-50b": {"total": "52B"},
    "gshard-37b": {"total": "39B"},
    "gshard-12b": {"total": "13.1B"},
}
"""Published numbers that the published sizes do not make, and what they make, to as many digits."""

EXPERTS = {
    "gshard-600b": 36864,  # 36684 published: a misprint
    "gshard-200b": 12288,  # 12228 published: a misprint
    "gshard-150b": 9216,
    "gshard-50b": 3072,
    "gshard-37b": 2304,
    "gshard-12b": 768,
    "st_moe-l": 12 * 32,
    "st_moe-32b": 12 * 64,  # 6 of 24 layers in each stack
}


def counted(name: str) -> tuple[ParameterCount, int, int]:
    """All counts, and the total and active parameters as the paper counts them."""
    recipe = load(name)
    assert recipe.paper is not None
    count = count_parameters(recipe)
    embedding = count.parts["embedding"] if name.startswith("gshard") else 0
    reading = "both" if embedding else recipe.paper.reading or "both"
    return count, count.total - embedding, count.active(reading) - embedding


def encoder_decoder(name: str) -> EncoderDecoder:
    model = load(name).model
    assert isinstance(model, EncoderDecoder)
    return model


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_what_the_published_sizes_make(name: str) -> None:
    count, total, active = counted(name)
    assert total == EXACT.get(name, total)
    assert (total, active) == (pytest.approx(ROWS[name][0], rel=5e-4), pytest.approx(ROWS[name][1], rel=2e-3))
    assert count.parts["other"] == 0


@pytest.mark.parametrize("name", ROWS)
def test_counts_equal_the_published_ones_unless_listed(name: str) -> None:
    paper = load(name).paper
    assert paper is not None and paper.title and paper.authors and paper.year and paper.arxiv
    _, total, active = counted(name)
    for what, number, published in (("total", total, paper.total), ("active", active, paper.active)):
        if published:
            expected = UNEXPLAINED.get(name, {}).get(what, published)
            assert rounded_like(number, published) == expected, f"{what}: {number:,} here, {published} published"


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_have_the_parameters_of_their_layers(name: str) -> None:
    """The sum over matrices and norms, without building anything."""
    s = encoder_decoder(name)
    assert s.moe is not None and s.decoder_depth is None
    attention = 4 * s.dim * s.attention.heads * s.attention.head_dim  # type: ignore[attr-defined]
    table = s.attention.buckets * s.attention.heads  # type: ignore[attr-defined]
    cross = 4 * s.dim * s.cross.heads * s.cross.head_dim
    matrices = {"Glu": 3, "Ffn": 2}
    dense, expert = (matrices[type(e).__name__] * s.dim * e.hidden for e in (s.ffn, s.moe.experts))  # type: ignore[attr-defined]
    mixtures = len(s.moe_layers(encoder=True))
    both = mixtures if s.moe.dense_too else 0  # mixtures with a dense part after them, which has its own norm
    feed = mixtures * s.moe.experts.count * (expert + s.dim) + (s.depth - mixtures + both) * dense
    norms = (2 * s.depth + 1 + 3 * s.depth + 1 + 2 * both) * s.dim
    embeddings = (1 if s.tied else 2) * s.vocab * s.dim
    total = 2 * (s.depth * (attention + table) + feed) + s.depth * cross + norms + embeddings
    assert count_parameters(s).total == total


@pytest.mark.parametrize("name", EXPERTS)
def test_encoder_decoders_have_the_published_number_of_experts(name: str) -> None:
    spec = encoder_decoder(name)
    assert spec.moe is not None
    layers = len(spec.moe_layers(encoder=True)) + len(spec.moe_layers(encoder=False))
    assert layers * spec.moe.experts.count == EXPERTS[name]


@pytest.mark.parametrize(
    ("name", "experts", "total"),
    [("switch-base", 64, "3.8B"), ("switch-base", 256, "14.7B"), ("switch-xxl", 64, "201.4B")],
)
def test_switch_with_other_numbers_of_experts(name: str, experts: int, total: str) -> None:
    """Base in the paper's other sizes. XXL needs twice the 64 experts that are published: these make only 201.4B."""
    spec = encoder_decoder(name)
    assert spec.moe is not None
    other = replace(spec, moe=replace(spec.moe, experts=replace(spec.moe.experts, count=experts)))
    assert rounded_like(count_parameters(other).total, total) == total


@pytest.mark.parametrize(("name", "hidden", "total"), [("switch-base", 2048, "7B"), ("switch-large", 2816, "27B")])
def test_switch_with_the_gated_widths_of_the_papers_table(name: str, hidden: int, total: str) -> None:
    """Base has the same count as with its plain width 3072; Large exceeds the 26B that were published."""
    gated = [
        f"model.{part}={{use: glu, hidden: {hidden}, count: {n}}}" for part, n in (("ffn", 1), ("moe.experts", 128))
    ]
    assert rounded_like(count_parameters(load(name, gated)).total, total) == total


@pytest.mark.parametrize(
    ("name", "tied", "untied", "without"),
    [("st_moe-l", 4.073e9, 4.106e9, 4.002e9), ("st_moe-32b", 268.94e9, 269.10e9, 265.3e9)],
)
def test_st_moe_has_a_dense_part_after_each_mixture_in_its_total(
    name: str, tied: float, untied: float, without: float
) -> None:
    """24 layers, six of them with both, in each stack. 269B and 4.1B are published; with either kind of head."""
    spec = encoder_decoder(name)
    assert spec.moe is not None and spec.moe.dense_too and spec.depth == 24
    found = [spec, replace(spec, tied=True), replace(spec, moe=replace(spec.moe, dense_too=False))]
    assert [count_parameters(s).total for s in found] == pytest.approx([untied, tied, without], rel=1e-3)
    paper = load(name).paper
    assert paper is not None
    assert {rounded_like(count_parameters(s).total, paper.total) for s in found[:2]} == {paper.total}


# ---- Shazeer et al. 2017 --------------------------------------------------------------------------------------------

BILLION_WORDS = 793_471

LSTM_TOTALS = {
    "4": ("8.4M", "0.8B"),
    "32": ("37.8M", "0.9B"),
    "256": ("272.9M", "1.1B"),
    "256h": ("272.9M", "1.1B"),
    "1024h": ("1079.0M", "1.9B"),
    "4096h": ("4303.4M", "5.1B"),
    "34m": ("4313.9M", "5.9B"),  # 6.0 published: with the paper's vocabulary the sum is 5.94
    "143m": ("4371.1M", "6.0B"),
    "65536h": ("68791.0M", "68.9B"),
}
"""Tables 7 and 8: parameters without embedding and softmax, and with them."""

LSTM_SIZES = {
    "4": (512, 512, 4, 1024, 0),
    "32": (512, 512, 32, 1024, 0),
    "256": (512, 512, 256, 1024, 0),
    "256h": (512, 512, 256, 1024, 16),
    "1024h": (512, 512, 1024, 1024, 16),
    "4096h": (512, 512, 4096, 1024, 16),
    "34m": (1024, 1024, 1024, 2048, 16),
    "143m": (1024, 4096, 256, 8192, 16),
    "65536h": (512, 512, 65536, 1024, 256),
}
"""D, cells of an LSTM, experts, their hidden width, and branches of the first level (0: only one level)."""

LSTM_MILLIONS = {"32": 37.786, "256": 272.896, "256h": 272.912, "1024h": 1079.005, "4096h": 4303.376}
"""Millions of parameters without embeddings, by a script independent of moekit."""


def lstm_parameters(D: int, cells: int, experts: int, hidden: int, branches: int) -> int:
    """Two LSTMs with one bias a gate (and a projection), experts of two matrices, W_g and W_noise at each level."""
    projection = cells * D if cells > D else 0
    lstms = 2 * (4 * (D + D) * cells + 4 * cells + projection)
    return lstms + experts * 2 * D * hidden + 2 * D * (experts + branches)


@pytest.mark.parametrize("name", LSTM_TOTALS)
def test_lstm_counts_equal_the_published_ones(name: str) -> None:
    recipe = load(f"shazeer2017-{name}")
    count = count_parameters(recipe)
    bare, whole = LSTM_TOTALS[name]
    assert count.without_embeddings == lstm_parameters(*LSTM_SIZES[name])
    assert rounded_like(count.without_embeddings, bare) == bare
    assert rounded_like(count.total, whole) == whole
    assert recipe.paper is not None
    assert (recipe.paper.total, recipe.paper.total_reading) == (bare, "without_either")
    assert recipe.paper.claim.startswith("perplexity ")
    if name in LSTM_MILLIONS:
        assert count.without_embeddings / 1e6 == pytest.approx(LSTM_MILLIONS[name], abs=6e-4)
    D, _, experts, hidden, _ = LSTM_SIZES[name]
    assert count.parts["routed experts"] == experts * 2 * D * hidden
    assert count.active_parts["routed experts"] == 4 * 2 * D * hidden, "four experts per word"
    assert count.parts["embedding"] == count.parts["head"] == D * (100_000 if name == "65536h" else BILLION_WORDS)


def test_the_dense_baseline_of_the_lstm_is_the_papers() -> None:
    """MoE-1-Wide: one expert with a hidden layer of 4096 units, 8.4M parameters."""
    baseline = load("shazeer2017-32").model.dense_baseline()
    assert baseline is not None
    count = count_parameters(baseline)
    assert count.parts["dense ffn"] == 2 * 512 * 4096
    assert rounded_like(count.without_embeddings, "8.4M") == "8.4M"
