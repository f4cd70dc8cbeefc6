"""Fine-tuning: which parameters are trained, which weights fit, and resuming a fine-tuning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from moekit.checkpoints.files import write_pointer
from moekit.checkpoints.reading import open_checkpoint
from moekit.errors import CheckpointError, SpecError
from moekit.inference.generate import load_run
from moekit.spec import load, to_plain
from moekit.spec.kinds import DataSpec
from moekit.spec.recipe import Start
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO
from moekit.training.module import LitMoE
from moekit.training.run.folder import checkpoint_of
from moekit.training.run.saved import check_same_model, check_same_tokens
from moekit.training.run.start import describe, freeze, with_checkpoint_path
from moekit_data.bpe import BytePairs
from moekit_data.bytes import Bytes
from moekit_data.labelled_text import LabelledText
from moekit_data.text_files import TextFiles
from moekit_data.translations import Translations
from moekit_data.vowels import Vowels

Make = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("quiet_lightning")


def fit(spec: dict[str, Any], path: Path, steps: int = 3, resume: Path | None = None) -> LitMoE:
    module = LitMoE(spec)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()], default_root_dir=path.parent,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=resume)
    trainer.save_checkpoint(path)
    return module


@pytest.fixture
def trained(recipe: Make, tmp_path: Path) -> Path:
    """The checkpoint of a short run."""
    fit(recipe(), tmp_path / "first")
    return tmp_path / "first"


def weights(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = open_checkpoint(path).whole()["state_dict"]
    return state


def embedding(module: LitMoE) -> Tensor:
    found: Tensor = module.model.state_dict()["embedding.weight"]
    return found


UPDATES: dict[str, dict[str, list[str]]] = {
    "all": {},
    "others": {"freeze": ["experts", "router"]},
    "experts": {"train": ["experts", "router"]},
}


def started(recipe: Make, run: Path, update: str = "all", **changes: Any) -> dict[str, Any]:
    return recipe(**{"seed": 5, "start": {"run": str(run), **UPDATES[update]}, **changes})


def is_mixture(name: str) -> bool:
    return ".ffn.experts." in name or ".ffn.router." in name


@pytest.mark.parametrize("update", UPDATES)
def test_frozen_parameters_stay_bit_for_bit_and_the_others_change(
    recipe: Make, trained: Path, tmp_path: Path, update: str
) -> None:
    model = {"shared": {"use": "glu", "hidden": 4}}
    plain = recipe()
    plain["model"]["moe"] |= model
    fit(plain, trained)
    spec = started(recipe, trained, update)
    spec["model"]["moe"] |= model
    module = fit(spec, tmp_path / "second")
    before, after = weights(trained), weights(tmp_path / "second")
    assert before.keys() == after.keys()
    names = {f"model.{name}" for name, _ in module.model.named_parameters()}
    experts = {n for n in names if is_mixture(n)}
    assert 3 <= len(experts) < len(names) and any(".shared." in n for n in names - experts)
    move = {"all": names, "experts": experts, "others": names - experts}[update]
    assert {n for n in names if not torch.equal(before[n], after[n])} == move


def test_weights_and_selection_bias_are_loaded_once_before_the_first_step(recipe: Make, trained: Path) -> None:
    module = LitMoE(started(recipe, trained, seed=9))
    saved = weights(trained)
    assert not torch.equal(embedding(module), saved["model.embedding.weight"])
    module.prepare()
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name
    assert any(name.endswith("bias_E") for name in module.model.state_dict())
    with torch.no_grad():  # loaded only once: later changes stay
        embedding(module).zero_()
    module.prepare()
    module.load_start()
    assert not embedding(module).any()


def test_the_optimizer_is_fresh_and_the_steps_count_from_0(recipe: Make, trained: Path, tmp_path: Path) -> None:
    fit(started(recipe, trained, "others"), tmp_path / "second", steps=2)
    contents = open_checkpoint(tmp_path / "second").whole()
    assert contents["global_step"] == 2
    (state,) = contents["optimizer_states"]
    assert {float(s["step"]) for s in state["state"].values()} == {2.0}
    held = sum(len(group["params"]) for group in state["param_groups"])
    assert held == sum(p.requires_grad for p in LitMoE(started(recipe, trained, "others")).model.parameters())


def test_a_resumed_run_does_not_load_the_start_again(recipe: Make, trained: Path, tmp_path: Path) -> None:
    """It does not need the first run's file, and equals a fine-tuning that did not stop."""
    spec = started(recipe, trained, "others", schedule=None)
    whole = fit(spec, tmp_path / "whole", steps=4)
    fit(spec, tmp_path / "half", steps=2)
    shutil.rmtree(trained)
    module = fit(spec, tmp_path / "on", steps=4, resume=tmp_path / "half")
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), whole.state_dict().values(), strict=True)
    )
    assert all(p.requires_grad != is_mixture(name) for name, p in module.model.named_parameters())
    loaded = load_run(str(tmp_path / "on"))  # generation does not need the file either
    assert torch.equal(embedding(loaded), embedding(whole))


def test_weights_of_another_model_are_rejected_and_nothing_is_loaded(recipe: Make, trained: Path) -> None:
    spec = started(recipe, trained)
    spec["model"] |= {"depth": 3, "vocab": 300}
    spec["model"]["moe"] = {**spec["model"]["moe"], "at": {"layers": [1]}, "balancers": {}}
    module = LitMoE(spec)
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="its weights are not those of this model") as error:
        module.prepare()
    text = str(error.value)
    assert text.startswith(f"cannot start from {trained}: its weights are not those of this model\n")
    assert "not in the checkpoint: blocks.2.attention_norm.weight, " in text and ", and " in text
    assert "not in the model: blocks.1.ffn.balancers.bias.bias_E\n" in text
    assert "of another shape: embedding.weight [256, 16] there, [300, 16] here, head.weight" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.model.state_dict().items())


def test_a_learnt_vocabulary_comes_with_the_weights(recipe: Make, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("wholly different words here " * 40)
    pairs = {"tokenizer": {"use": "bpe", "vocab": 270}}
    spec = recipe()
    spec["data"] |= pairs
    spec["model"]["vocab"] = 270
    first = fit(spec, trained)
    spec = started(recipe, trained, data=spec["data"] | {"path": str(tmp_path / "other.txt")}, model=spec["model"])
    module = LitMoE(spec)
    data = module.prepare()
    assert first.data is not None and data.state() == first.data.state() != {}


def test_an_error_about_other_tokens_has_the_tokenizer_that_fits(recipe: Make, trained: Path) -> None:
    spec = recipe()
    spec["data"] |= {"tokenizer": {"use": "bpe", "vocab": 270}}
    spec["model"]["vocab"] = 270
    fit(spec, trained)
    data = recipe()["data"]
    for tokenizer in (None, {"use": "bpe", "vocab": 260}):
        other = data if tokenizer is None else data | {"tokenizer": tokenizer}
        with pytest.raises(
            CheckpointError, match=r"""other tokens:(.|\n)*vocab: 270 in(.|\n)*='\{"use": .*"vocab": 270"""
        ):
            LitMoE(started(recipe, trained, data=other, model=spec["model"])).prepare()


def test_options_of_tokens_that_are_not_stated_are_those_of_the_weights(recipe: Make, tmp_path: Path) -> None:
    """The languages of a translation, which are learnt too; a tokenizer within the text that pairs are made of."""

    def check(saved: DataSpec, now: DataSpec, **options: bool) -> str:
        try:
            check_same_tokens(tmp_path, {"data": to_plain(saved, full_names=True)}, now, **options)
        except CheckpointError as error:
            return str(error)
        return ""

    two, small = Translations(languages=["de", "fr"]), Translations(tokenizer=BytePairs(vocab=300))
    said = check(two, Translations(languages=["fr", "de"]), stated=True)
    assert said.splitlines()[1:] == [
        "  data.languages: ['de', 'fr'] in the checkpoint, ['fr', 'de'] now",
        """  expected data.languages='["de", "fr"]'""",
    ]
    assert not check(two, Translations(), stated=True) and not check(small, Translations(), stated=True)
    assert "data.languages: ['de', 'fr'] in" in check(two, Translations())
    assert "data.tokenizer.vocab: 300 in the checkpoint, 1920 now" in check(small, Translations())
    bytes_alone, text = Translations(tokenizer=Bytes()), TextFiles(path="x", tokenizer=BytePairs(vocab=300))
    assert "data.tokenizer.use: 'data/bytes' in the checkpoint" in check(bytes_alone, Translations(), stated=True)
    pairs = LabelledText(text=TextFiles(path="x"), vocab=400)
    assert "data.text.tokenizer.vocab: 300 in the checkpoint" in check(text, pairs, stated=True)
    assert not check(Vowels(), pairs) and not check(pairs, Vowels())


def test_parameters_that_the_model_fixes_stay_fixed(recipe: Make) -> None:
    model = LitMoE(recipe()).model
    fixed = dict(model.named_parameters())["norm.weight"]
    fixed.requires_grad_(False)
    freeze(model, Start(run="any", freeze=["experts", "router"]))
    assert not fixed.requires_grad
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not is_mixture(name)} - {"norm.weight"}
    freeze(model, Start(run="any", train=["embedding", "router"]))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"embedding.weight"}


def test_a_part_that_the_model_lacks_is_not_trained_or_frozen_in_silence(recipe: Make) -> None:
    spec = started(recipe, Path("nowhere"), "experts")
    spec["model"]["moe"] = None
    with pytest.raises(SpecError, match=r"start\.train: no tensor has 'experts' in its name(.|\n)*embedding"):
        LitMoE(spec)
    spec["start"] = {"run": "nowhere", "train": ["embedding"], "freeze": ["embedding"]}
    with pytest.raises(SpecError, match="leave no parameter to train"):
        LitMoE(spec)


def test_the_latest_run_is_replaced_by_a_checkpoints_path(recipe: Make, trained: Path, tmp_path: Path) -> None:
    for stamp in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        folder = tmp_path / "runs" / "tiny" / stamp
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "spec.yaml").write_text("schema: 1\n")
        shutil.copytree(trained, folder / "checkpoints" / "step-00000003")
        write_pointer(folder / "checkpoints", "last", "step-00000003")
    spec = load(recipe(start={"run": "tiny"}))
    assert spec.start is not None
    found = with_checkpoint_path(spec, spec.start, tmp_path / "runs").start
    assert found is not None
    assert Path(found.run) == tmp_path / "runs/tiny/2026-01-02_00-00-00/checkpoints/step-00000003"
    assert checkpoint_of(found.run, Path("elsewhere")) == Path(found.run)
    lost = load(recipe(start={"run": "none"}))
    assert lost.start is not None
    with pytest.raises(CheckpointError, match="no run at 'none'"):
        with_checkpoint_path(lost, lost.start, tmp_path / "runs")


def test_describe_names_the_run_and_what_is_trained(recipe: Make, trained: Path) -> None:
    assert describe(Start(run=str(trained)), None) == f"the weights of {trained}"
    module = LitMoE(started(recipe, trained, "others"))
    held = {name: p.numel() for name, p in module.model.named_parameters()}
    experts, total = (sum(n for name, n in held.items() if is_mixture(name) >= wanted) for wanted in (True, False))
    said = describe(Start(run=str(trained), freeze=["experts", "router"]), module.model)
    assert said.startswith(
        f"the weights of {trained}; {total - experts:,} parameters are trained: embedding 4,096 of 4,"
    )
    assert ", routers 0 of 64, " in said and ", routed experts 0 of " in said and said.endswith(", head 4,096 of 4,096")


def test_resuming_with_other_trained_parameters_is_rejected(recipe: Make, trained: Path) -> None:
    saved = to_plain(load(started(recipe, trained, "others")))
    with pytest.raises(CheckpointError, match=r"start\.freeze: .*experts"):
        check_same_model(trained, saved, to_plain(load(started(recipe, trained, "experts"))))
    with pytest.raises(CheckpointError, match=r"start\.run: '.*' in the checkpoint, 'another' now"):
        check_same_model(trained, saved, to_plain(load(started(recipe, Path("another"), "others"))))
    for option, now in (("fresh", ["router"]), ("convert", {"use": "upcycle"})):
        with pytest.raises(CheckpointError, match=rf"start\.{option}: .* in the checkpoint, .* now"):
            check_same_model(trained, saved, {**saved, "start": {**saved["start"], option: now}})
    check_same_model(trained, saved, saved)


def test_a_comparison_with_a_start_is_rejected(recipe: Make) -> None:
    with pytest.raises(SpecError, match=r"the dense model has no weights to start from; compare: null"):
        load(recipe(start={"run": "tiny"}, compare={}))
    with pytest.raises(SpecError, match="run is empty"):
        load(recipe(start={"run": " "}))
