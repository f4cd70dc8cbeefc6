"""Pruning removes the experts that contribute least, and says what that costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from changed_run import run_with
from tiny_folders import write_folder

import moekit
from moekit import MoekitError
from moekit.cli import main
from moekit.moe_layer import MoELayer
from moekit.routing import TokenChoice
from moekit_hf.importing import import_folder
from moekit_upcycle.pruning import prune
from moekit_upcycle.saliency import saliency

TINY = [
    "model.dim=16", "model.depth=2", "model.ffn.hidden=24", "trainer.max_steps=3", "optimizer.lr=0.01",
    "model.attention={use: gqa, heads: 2, kv_heads: 2, head_dim: 8}",
    "data.seq=16", "data.batch=4", "data.megabytes=0.1", "data.validation_windows=4",
]  # fmt: skip
MOE = (
    "model.moe={at: {first: 0}, router: {use: topk, top_k: 2, score: sigmoid, renormalize: true}, "
    "experts: {use: glu, count: 6, hidden: 8}, balancers: {bias: {use: sign_bias}}}"
)
DEAD = (1, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in whose two mixtures the experts 1 and 4 are never chosen, for their selection bias is very low."""

    def change(name: str, weight: torch.Tensor) -> None:
        if name.endswith("bias_E"):
            weight[list(DEAD)] = -10.0

    return run_with(tmp_path_factory.mktemp("run"), [*TINY, MOE], change)


@torch.no_grad()
def test_saliency_is_that_of_loops_over_tokens(run: Path) -> None:
    module = moekit.open(run).module
    model = module.model.double().eval()
    data = module.data
    assert data is not None
    data.prepare()
    batches = list(data.validation_batches())[:1]
    layer = model.get_submodule("blocks.1.ffn")
    assert isinstance(layer, MoELayer)
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten(0, -2)))
    report = model.on(batches[0]).reports["blocks.1.ffn"]
    (x_TD,) = seen
    weights = layer.experts.state_dict()
    sums, loads = [0.0] * 6, [0] * 6
    routing = report.routing
    assert isinstance(routing, TokenChoice)
    for x_D, experts, gates in zip(x_TD, routing.expert_TK.tolist(), routing.gate_TK.tolist(), strict=True):
        for e, gate in zip(experts, gates, strict=True):
            gate_up = weights["w_gate_up_EHD"][e] @ x_D
            y = weights["w_down_EOH"][e] @ (F.silu(gate_up[:8]) * gate_up[8:])
            sums[e] += gate * float(y.norm())
            loads[e] += 1
    found = saliency(model, batches)["blocks.1.ffn"]
    torch.testing.assert_close(found.sum_E, torch.tensor(sums, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert found.load_E.tolist() == loads and loads[1] == loads[4] == 0


def test_dead_experts_are_found_and_removing_them_costs_nothing(run: Path, tmp_path: Path) -> None:
    made = prune(str(run), tmp_path / "four", 4)
    assert set(map(tuple, made.kept.values())) == {(0, 2, 3, 5)} and len(made.kept) == 2
    assert made.after == pytest.approx(made.before, abs=1e-6)
    one, other = (moekit.open(path).model.state_dict() for path in (run, tmp_path / "four"))
    for name, tensor in other.items():
        kept = [0, 2, 3, 5] if ".ffn." in name else slice(None)
        assert torch.equal(tensor, one[name][kept]), name
    less = prune(str(run), tmp_path / "three", 3)
    assert abs(less.after - less.before) > 1e-6


GROUPED = MOE.replace("top_k: 2,", "top_k: 2, groups: 3, top_groups: 1, group_score: top2_sum,").replace(
    "count: 6", "count: 12"
)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose router chooses one of three groups, and whose experts of the first group contribute most."""

    def change(name: str, weight: torch.Tensor) -> None:
        if name.endswith("experts.w_down_EOH"):
            weight[:4] *= 20

    return run_with(tmp_path_factory.mktemp("grouped"), [*TINY, GROUPED], change)


@torch.no_grad()
def test_no_expert_moves_to_another_group(grouped: Path, tmp_path: Path) -> None:
    """Every token chooses as in the whole model whose removed experts are never chosen."""
    made = prune(str(grouped), tmp_path / "six", 6)
    whole, pruned = moekit.open(grouped).model, moekit.open(tmp_path / "six").model
    for name, kept in made.kept.items():
        assert [expert // 4 for expert in kept] == [0, 0, 1, 1, 2, 2]
        gone = [expert for expert in range(12) if expert not in kept]
        whole.get_buffer(f"{name}.balancers.bias.bias_E")[gone] = -1e4
    ids_BS = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(0))
    one, other = whole(ids_BS), pruned(ids_BS)
    torch.testing.assert_close(one.y, other.y)
    for name, kept in made.kept.items():
        before, after = (each.reports[name].routing for each in (one, other))
        assert isinstance(before, TokenChoice) and isinstance(after, TokenChoice)
        assert torch.equal(before.expert_TK, torch.tensor(kept)[after.expert_TK])


def test_groups_keep_equally_many_experts(grouped: Path, tmp_path: Path) -> None:
    for keep, expected in ((7, "6 or 9"), (11, "9"), (2, "6")):
        with pytest.raises(
            MoekitError, match=rf"--keep {keep}: the router's 3 groups .* equally many\n  expected --keep {expected}$"
        ):
            prune(str(grouped), tmp_path / "out", keep)
    two = GROUPED.replace("count: 12", "count: 6")
    run = moekit.train("base/language_model", [*TINY, two], out=tmp_path, quiet=True)
    with pytest.raises(MoekitError, match="expected --keep a multiple of 3: of 6 experts, none fits"):
        prune(str(run.path), tmp_path / "out", 4)


def test_an_imported_mixture_is_pruned_trains_on_and_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = write_folder(tmp_path / "theirs")
    (theirs / "chat_template.jinja").write_text("{{ messages }}")
    import_folder(theirs, tmp_path / "run")
    text = ["data.use=local_text", "data.seq=16", "data.batch=2", "data.megabytes=0.05", "data.validation_windows=2"]
    with pytest.raises(MoekitError, match="the run has no data to judge experts on"):
        prune(str(tmp_path / "run"), tmp_path / "small", 2)
    trained = moekit.train(tmp_path / "run" / "spec.yaml", [*text, "trainer.max_steps=1"], out=tmp_path, quiet=True)
    assert (
        main(["prune", str(trained.path), "--keep", "2", "--to", str(tmp_path / "small"), "data.validation_windows=1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "blocks.0.ffn" in said and " before, " in said and str(tmp_path / "small") in said
    moekit.train(tmp_path / "small" / "spec.yaml", ["trainer.max_steps=1"], out=tmp_path / "more", quiet=True)
    assert main(["export", str(tmp_path / "small"), str(tmp_path / "out"), "--format", "hf"]) == 0
    config = (tmp_path / "out" / "config.json").read_text()
    assert '"num_local_experts": 2' in config and '"max_position_embeddings": 64' in config
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_experts_are_judged_on_the_users_own_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"so much text of my own, {i}\n" * 40)
    assert main(["prune", str(run), "data.use=text_files", f"data.path={tmp_path}", "data.seq=16"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["layer", "expert", "load", "saliency"] and len(rows) == 1 + 2 * 6
    assert [row[:4] for row in rows if row[-1] == "dead"] == [
        ["1", "0.0%", "0", "dead"],
        ["4", "0.0%", "0", "dead"],
    ] * 2
    shares = [float(share.rstrip("%")) for row in rows[1:7] for share in row if share.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert main(["prune", str(run), "--keep", "2"]) == 2 and "belong together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "overrides", "match"),
    [
        (6, [], r"--keep 6: the model's layers have \[6\] experts; expected fewer"),
        (0, [], "--keep 0: expected at least 1"),
        (1, [], "--keep 1: top_k=2 is more than the 1 experts there are"),
        (4, ["model.dim=8"], "changes more than the data"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    run: Path, tmp_path: Path, keep: int, overrides: list[str], match: str
) -> None:
    with pytest.raises(MoekitError, match=match):
        prune(str(run), tmp_path / "out", keep, overrides)
    assert not (tmp_path / "out").exists()
