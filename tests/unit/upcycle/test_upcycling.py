"""A mixture made from a dense run computes what the dense model computes, until units are initialised anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_run import run_with

import moekit
from moekit import MoekitError
from moekit.cli import main
from moekit_upcycle.upcycle import Upcycle
from moekit_upcycle.upcycle.experts import SPLITS, expert_of
from moekit_upcycle.upcycling import MadeRun, upcycle

DENSE = [
    "model.dim=16", "model.depth=2", "model.ffn.hidden=24", "trainer.max_steps=1",
    "model.attention={use: gqa, heads: 2, kv_heads: 2, head_dim: 8}",
    "data.seq=16", "data.megabytes=0.1", "data.validation_windows=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run after one step."""
    out = tmp_path_factory.mktemp("dense")
    return moekit.train("base/language_model", DENSE, out=out, quiet=True).path


def mixture(count: int, hidden: int, router: str, at: str = "first: 0") -> str:
    experts = f"{{use: glu, count: {count}, hidden: {hidden}}}"
    return f"model.moe={{at: {{{at}}}, router: {{use: topk, {router}}}, experts: {experts}}}"


def made(dense: Path, out: Path, moe: str, *more: str, **how: Any) -> MadeRun:
    return upcycle([str(dense)], out, [moe, *more], Upcycle(**how))


def largest_difference(one: Path, other: Path) -> float:
    ids_BS = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        a, b = (moekit.open(run).model(ids_BS).y for run in (one, other))
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    ("count", "hidden", "router", "shards"),
    [
        (4, 24, "top_k: 2, renormalize: true", 1),
        (4, 24, "top_k: 2, score_over: chosen", 1),
        (4, 24, "top_k: 3, score: sigmoid, renormalize: true, scale: 2.5", 1),
        (8, 12, "top_k: 2, renormalize: true", 2),
        (12, 6, "top_k: 8, renormalize: true, scale: 0.5", 4),
    ],
)
def test_the_mixture_computes_what_the_dense_model_computes(
    dense: Path, tmp_path: Path, count: int, hidden: int, router: str, shards: int
) -> None:
    found = made(dense, tmp_path / "moe", mixture(count, hidden, router), shards=shards)
    assert found.exact and found.layers == ("blocks.0.ffn", "blocks.1.ffn")
    assert largest_difference(dense, tmp_path / "moe") <= 1e-6


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run whose feed-forward layers have options other than the defaults, and biases that are not 0."""
    ffn = "model.ffn={use: glu, hidden: 24, activation: gelu, bias: true, clamp: 0.05, up_shift: 0.5, scale_bias: true}"

    def change(name: str, weight: torch.Tensor) -> None:
        if ".ffn.b_" in name:
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    return run_with(tmp_path_factory.mktemp("biased"), [*DENSE, ffn], change)


@pytest.mark.parametrize(
    ("count", "hidden", "router", "shards"),
    [
        (4, 24, "top_k: 2, renormalize: true, scale: 2.5", 1),
        (8, 12, "top_k: 4, renormalize: true, scale: 0.5", 2),
    ],
)
def test_experts_have_the_options_of_the_dense_layers_and_its_last_bias_once(
    biased: Path, tmp_path: Path, count: int, hidden: int, router: str, shards: int
) -> None:
    found = made(biased, tmp_path / "moe", mixture(count, hidden, router), shards=shards)
    experts = moekit.to_plain(found.recipe.model)["moe"]["experts"]  # type: ignore[index]
    assert (experts["activation"], experts["clamp"], experts["count"]) == ("gelu", 0.05, count)
    assert found.exact and largest_difference(biased, tmp_path / "moe") <= 1e-5


@pytest.mark.parametrize(
    ("experts", "more", "said"),
    [
        ("activation: relu", [], r"model\.moe\.experts\.activation=relu, but silu in the dense model"),
        ("clamp: 0.01", [], r"model\.moe\.experts\.clamp=0\.01, but None in"),
        ("up_shift: 1.0", [], r"model\.moe\.experts\.up_shift=1\.0, but 0\.0 in"),
        ("alpha: 1.7", [], r"model\.moe\.experts\.alpha=1\.7, but 1\.0 in"),
        ("", ["model.attention.rope_theta=100"], r"model\.attention\.rope_theta=100\.0, but 10000\.0 in"),
        ("", ["model.moe.dispatcher={use: capacity, factor: 0.5}"], r"model\.moe\.dispatcher drops"),
    ],
)
def test_what_another_option_changes_is_said(
    dense: Path, tmp_path: Path, experts: str, more: list[str], said: str
) -> None:
    moe = mixture(4, 24, "top_k: 2, renormalize: true").replace("hidden: 24", f"hidden: 24, {experts}".rstrip(", "))
    found = made(dense, tmp_path / "moe", moe, *more)
    (why,) = found.differs
    assert re.match(said, why) and not found.exact and largest_difference(dense, tmp_path / "moe") > 1e-4


def test_options_of_training_change_nothing(dense: Path, tmp_path: Path) -> None:
    moe = mixture(4, 24, "top_k: 2, renormalize: true").replace("hidden: 24", "hidden: 24, dropout: 0.1")
    found = made(dense, tmp_path / "moe", moe, "model.recompute=blocks", "model.moe.balancers={b: {use: sign_bias}}")
    assert found.exact and largest_difference(dense, tmp_path / "moe") <= 1e-6


def test_shards_are_chosen_together_and_are_parts_of_one_net(dense: Path, tmp_path: Path) -> None:
    made(dense, tmp_path / "moe", mixture(6, 8, "top_k: 3, renormalize: true", at="layers: [1]"), shards=3)
    model = moekit.open(tmp_path / "moe").model
    report = model(torch.randint(256, (1, 16))).reports["blocks.1.ffn"]
    copies_TK = (report.routing.expert_TK // 3).sort(-1).values  # type: ignore[attr-defined]
    assert torch.equal(copies_TK, copies_TK[:, :1].expand(-1, 3))
    weights, net = model.state_dict(), moekit.open(dense).model.state_dict()
    gate_up, down = weights["blocks.1.ffn.experts.w_gate_up_EHD"], weights["blocks.1.ffn.experts.w_down_EOH"]
    whole = net["blocks.1.ffn.w_gate_up_EHD"][0]
    for e in range(6):
        i = e % 3 * 8
        assert torch.equal(gate_up[e], torch.cat([whole[i : i + 8], whole[24 + i : 32 + i]]))
        assert torch.equal(down[e], 3 * net["blocks.1.ffn.w_down_EOH"][0][:, i : i + 8])
    assert torch.equal(weights["blocks.0.ffn.w_down_EOH"], net["blocks.0.ffn.w_down_EOH"])


def test_fresh_units_are_the_same_in_all_matrices_and_of_the_nets_distribution(dense: Path, tmp_path: Path) -> None:
    found = made(dense, tmp_path / "moe", mixture(4, 24, "top_k: 2, renormalize: true"), redraw=0.5, seed=5)
    assert not found.exact and largest_difference(dense, tmp_path / "moe") > 1e-3
    weights, net = moekit.open(tmp_path / "moe").model.state_dict(), moekit.open(dense).model.state_dict()
    kept = []
    for e in range(4):
        same = weights["blocks.0.ffn.experts.w_gate_up_EHD"][e] == net["blocks.0.ffn.w_gate_up_EHD"][0]
        gate, up = same.all(1).chunk(2)
        down = (weights["blocks.0.ffn.experts.w_down_EOH"][e] == net["blocks.0.ffn.w_down_EOH"][0]).all(0)
        assert torch.equal(gate, up) and torch.equal(gate, down) and int(gate.sum()) == 12
        assert not same[~torch.cat([gate, up])].any()
        kept.append(gate)
    assert any(not torch.equal(kept[0], other) for other in kept[1:])
    new = weights["blocks.0.ffn.experts.w_down_EOH"][0][:, ~kept[0]]
    old = net["blocks.0.ffn.w_down_EOH"]
    assert 0.7 < float(new.std() / old.std()) < 1.4


def test_the_same_seed_makes_the_same_mixture(dense: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made(dense, tmp_path / name, mixture(4, 24, "top_k: 2, renormalize: true"), redraw=0.25, seed=seed)
    one, same, other = (moekit.open(tmp_path / name).model.state_dict() for name in "abc")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.ffn.router.weight_ED"], other["blocks.0.ffn.router.weight_ED"])


def test_several_models_give_experts_by_turns_and_the_mean_of_all_else(dense: Path, tmp_path: Path) -> None:
    other = moekit.train("base/language_model", [*DENSE, "seed=1"], out=tmp_path, quiet=True).path
    moe = mixture(4, 12, "top_k: 2, renormalize: true")
    found = upcycle([str(dense), str(other)], tmp_path / "moe", [moe], Upcycle(shards=2))
    assert not found.exact
    one, two, both = (moekit.open(run).model.state_dict() for run in (dense, other, tmp_path / "moe"))
    down = both["blocks.0.ffn.experts.w_down_EOH"]
    for e, net in enumerate((one, one, two, two)):
        assert torch.equal(down[e], 2 * net["blocks.0.ffn.w_down_EOH"][0][:, e % 2 * 12 : e % 2 * 12 + 12])
    name = "blocks.1.attention.q.weight"
    torch.testing.assert_close(both[name], (one[name] + two[name]) / 2, rtol=1e-6, atol=1e-8)


def test_three_times_the_same_model_is_that_model(dense: Path, tmp_path: Path) -> None:
    moe = mixture(3, 24, "top_k: 2, renormalize: true")
    upcycle([str(dense)] * 3, tmp_path / "moe", [moe], Upcycle())
    assert largest_difference(dense, tmp_path / "moe") <= 1e-6


def test_models_of_another_form_or_vocabulary_are_refused(dense: Path, tmp_path: Path) -> None:
    learnt = [*DENSE, "data.tokenizer={use: bpe, vocab: 300}"]
    runs = {
        name: str(moekit.train("base/language_model", options, out=tmp_path, name=name, quiet=True).path)
        for name, options in {
            "deep": [*DENSE, "model.depth=3"],
            "code": [*learnt, "data.domains=[python]"],
            "prose": [*learnt, "data.domains=[prose]"],
        }.items()
    }
    moe = mixture(4, 24, "top_k: 2, renormalize: true")
    for pair, message in (
        ([str(dense), runs["deep"]], r"'blocks\.2\..*' is .*None in the first run"),
        ([runs["code"], runs["prose"]], "its tokens are not those of the first run"),
    ):
        with pytest.raises(MoekitError, match=message):
            upcycle(pair, tmp_path / "moe", [moe], Upcycle())
        assert not (tmp_path / "moe").exists()


def test_a_mixture_trains_on_from_its_weights(dense: Path, tmp_path: Path) -> None:
    moe = mixture(4, 24, "top_k: 2, renormalize: true")
    made(dense, tmp_path / "moe", moe, "model.moe.balancers={bias: {use: sign_bias}, load: {use: load_balance}}")
    run = moekit.train(tmp_path / "moe" / "spec.yaml", ["optimizer.lr=1e-30", "optimizer.weight_decay=0"], out=tmp_path,
                       name="on", quiet=True)  # fmt: skip
    assert largest_difference(dense, run.path) <= 1e-5


def test_the_files_of_an_imported_model_come_along_through_the_run_that_it_was_trained_in(
    dense: Path, tmp_path: Path
) -> None:
    imported = shutil.copytree(dense, tmp_path / "imported_run")
    (imported / "imported").mkdir()
    (imported / "imported" / "chat_template.jinja").write_text("{{ messages }}")
    tuned = moekit.train("base/language_model", [*DENSE, f"start.run={imported}"], out=tmp_path, quiet=True)
    made(tuned.path, tmp_path / "moe", mixture(4, 24, "top_k: 2, renormalize: true"))
    assert (tmp_path / "moe" / "imported" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    ("moe", "shards", "message"),
    [
        (mixture(4, 24, "top_k: 2"), 1, "its gates do not add up to one number"),
        (mixture(4, 12, "top_k: 3, renormalize: true"), 2, "a token must choose all 2 shards"),
        (mixture(5, 12, "top_k: 2, renormalize: true"), 2, "5 experts cannot be 2 shards"),
        (mixture(4, 20, "top_k: 2, renormalize: true"), 1, "check hidden"),
        ("model.dim=16", 1, "the recipe has no mixture"),
    ],
)
def test_a_mixture_that_is_not_the_dense_model_is_refused(
    dense: Path, tmp_path: Path, moe: str, shards: int, message: str
) -> None:
    with pytest.raises(MoekitError, match=message):
        made(dense, tmp_path / "moe", moe, shards=shards)
    assert not (tmp_path / "moe").exists()


def test_shared_experts_and_another_model_are_refused(dense: Path, tmp_path: Path) -> None:
    moe = mixture(4, 24, "top_k: 2, renormalize: true")
    with pytest.raises(MoekitError, match="shared experts would add"):
        made(dense, tmp_path / "moe", moe, "model.moe.shared={use: glu, hidden: 8}")
    with pytest.raises(MoekitError, match=r"the dense model's 'blocks\.1\..*' has no place in the mixture"):
        made(dense, tmp_path / "moe", moe, "model.depth=1")
    with pytest.raises(MoekitError, match="parameter 'other' cannot be made"):
        expert_of(Upcycle(), "ffn", 0, "other", torch.zeros(2, 2), 1.0)
    assert {"w_gate_up_EHD", "w_up_EHD", "w_down_EOH"} <= set(SPLITS)


def test_noise_makes_experts_differ_by_so_much_and_no_more(dense: Path, tmp_path: Path) -> None:
    found = made(dense, tmp_path / "moe", mixture(4, 24, "top_k: 2, renormalize: true"), noise=0.1)
    assert not found.exact and 0 < largest_difference(dense, tmp_path / "moe") < 0.1
    whole = moekit.open(dense).model.state_dict()["blocks.0.ffn.w_gate_up_EHD"]
    noise = moekit.open(tmp_path / "moe").model.state_dict()["blocks.0.ffn.experts.w_gate_up_EHD"] - whole
    assert not torch.equal(noise[0], noise[1])
    assert float(noise.std() / whole.std()) == pytest.approx(0.1, rel=0.1)


def test_a_run_starts_from_a_dense_run_by_its_spec_as_by_the_verb(dense: Path, tmp_path: Path) -> None:
    """The same tensors, without a run in between; resumed, it does not need the dense run."""
    how = {"shards": 2, "redraw": 0.25, "noise": 0.01, "seed": 3}
    moe = mixture(4, 12, "top_k: 2, renormalize: true")
    made(dense, tmp_path / "moe", moe, **how)
    options = ", ".join(f"{name}: {value}" for name, value in how.items())
    start = f"start={{run: {dense}, convert: {{use: upcycle, {options}}}}}"
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "trainer.max_steps=1", start, moe]
    run = moekit.train("base/language_model", [*DENSE, *still], out=tmp_path, name="spec", quiet=True)
    one, other = moekit.open(tmp_path / "moe").model.state_dict(), run.model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_verb_says_what_it_made(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moe, out = mixture(4, 24, "top_k: 2, renormalize: true"), str(tmp_path / "moe")
    assert main(["upcycle", str(dense), moe, "--to", out]) == 0
    assert "2 mixtures" in (said := capsys.readouterr().out) and "it computes what the dense model computes" in said
    other = [moe, "model.moe.experts.clamp=1", "--to", out + "1", "--noise", "0.1"]
    assert main(["upcycle", str(dense), *other]) == 0
    said = capsys.readouterr().out
    assert (
        "it does not compute what the dense model does:\n  noise=0.1 changes the experts' weights\n  model.moe" in said
    )
    assert main(["upcycle", str(dense), moe, "--to", out]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["upcycle", str(dense), moe, "--to", out + "2", "--redraw", "2"]) == 2
    assert main(["upcycle", moe, "--to", out + "2"]) == 2 and "no dense run is given" in capsys.readouterr().err
