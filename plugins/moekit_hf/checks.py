"""Checks of formats: a tiny random model made by ``transformers`` is the same model here, and comes back unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moekit.contracts import Batch, Model, Objective, Source
from moekit.inference.generate import load_run, sample, targets
from moekit.registry import build
from moekit.routing import TokenChoice
from moekit.spec import component_spec
from moekit_hf import peer
from moekit_hf.exporter import HuggingFace
from moekit_hf.folder import Folder
from moekit_hf.format import FormatSpec
from moekit_hf.importing import TRAINING, import_folder, inspect
from moekit_hf.matching import misfit
from moekit_testing.assertions import require
from moekit_testing.case import Case, Check

LOGITS = 1e-5
"""Largest difference of logits in fp32, as a share of the largest logit where that is above 1."""

GRADIENTS = 1e-4
"""Largest difference of a gradient in fp32, as a share of the largest of its tensor."""

GREEDY = 64
START = 0


def checks(case: Case) -> Iterator[Check]:
    """The checks of a format; those that compare with ``transformers`` are skipped where it is not installed."""
    yield from (check_it_has_examples, check_same_function, check_same_balance_loss)
    yield from (check_same_weights_back, check_same_text)


@dataclass(frozen=True)
class Pair:
    """One model on both sides: theirs, the folder it was saved in, and the run it was imported as."""

    theirs: Any
    folder: Path
    run: Path
    ours: Model

    @property
    def reads_source(self) -> bool:
        """Whether it is an encoder-decoder."""
        return bool(self.theirs.config.is_encoder_decoder)


@contextmanager
def imported(family: FormatSpec, config: Mapping[str, Any]) -> Iterator[Pair]:
    """A tiny model of ``transformers``, and the same model imported."""
    theirs = peer.make(family, config)
    with peer.saved(theirs) as folder:
        run = folder.parent / "run"
        import_folder(folder, run)
        yield Pair(theirs, folder, run, load_run(str(run)).model)


def check_it_has_examples(case: Case) -> None:
    """Has a tiny configuration of which every other check makes a model."""
    require(len(case.spec_as(FormatSpec).tiny()) > 0, found="none", expected="FormatSpec.tiny() with one or more")


def check_same_function(case: Case) -> None:
    """Computes the same logits, sends every token to the same experts, and has the same gradient of every weight."""
    for config, found in compared(case):
        for what, (difference, bound) in found.items():
            seen = f"{what}: a difference of {difference:.2g} for {dict(config)}"
            require(difference <= bound, found=seen, expected=f"at most {bound:g}")


def check_same_balance_loss(case: Case) -> None:
    """Has the balance loss of ``transformers``, pooled over layers, with and without padding, if the format names one.

    An import then trains with it: the objective's ``pooled_balance``.
    """
    family = case.spec_as(FormatSpec)
    objective: Objective = build(component_spec("objective", {**TRAINING["objective"], "pooled_balance": 1.0}))
    for config in _with_transformers(case) if family.pooled_balance is not None else ():
        with imported(family, config) as pair, torch.no_grad():
            ids_BS = peer.tokens(int(config["vocab_size"]))
            valid_BS = torch.arange(ids_BS.shape[1]) < torch.tensor([[17], [ids_BS.shape[1]]])
            for valid in (None, valid_BS):
                mask = None if valid is None else valid.long()
                theirs = float(pair.theirs(ids_BS, attention_mask=mask, output_router_logits=True).aux_loss)
                batch = Batch(ids_BS, ids_BS, valid)
                total, count = objective(pair.ours(ids_BS, valid=valid), batch).metrics["pooled_balance"]
                found = float(total / count)
                require(abs(found - theirs) <= 1e-5 * theirs, found=f"{found} for {dict(config)}", expected=f"{theirs}")


def check_same_weights_back(case: Case) -> None:
    """Exports an imported model to the same tensors, bit for bit, and to a configuration of the same function."""
    for config in _with_transformers(case):
        with imported(case.spec_as(FormatSpec), config) as pair:
            out = _exported(pair)
            before, after = _tensors(pair.folder), _tensors(out)
            before = {name: tensor for name, tensor in before.items() if name not in inspect(pair.folder).ignored}
            require(set(before) == set(after), found=f"{set(before) ^ set(after)}", expected="the same names")
            for name, tensor in before.items():
                same = torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8))
                require(same, found=f"{name} differs for {dict(config)}", expected="the same bits")
            one, other = inspect(pair.folder).model, inspect(out).model
            require(one == other, found=f"{other}", expected=f"{one}")
            ids_BS = peer.tokens(int(config["vocab_size"]))
            again = peer.run(_loaded(case, out), ids_BS).logits
            logits = peer.run(pair.theirs, ids_BS).logits
            far = float((again - logits).detach().abs().max())  # not 0: products depend on where weights are in memory
            require(
                far <= LOGITS, found=f"logits that differ by {far:.1g} for {dict(config)}", expected="the original's"
            )
            require(not (why := misfit(case.spec_as(FormatSpec), one)), found="\n".join(why), expected="no difference")


def check_same_text(case: Case) -> None:
    """Loads in ``AutoModelForCausalLM`` after an export, and generates the same tokens there, greedily, as here.

    Of the first tiny configuration.
    """
    for config in _with_transformers(case)[:1]:
        with imported(case.spec_as(FormatSpec), config) as pair:
            again = _loaded(case, _exported(pair))
            prompt_S = peer.tokens(int(config["vocab_size"]))[0, :5]
            here, first, start = _greedy(pair, prompt_S), len(prompt_S), {}
            if pair.reads_source:
                first, start = 1, {"decoder_start_token_id": START}
            for name, model in (("the original", pair.theirs), ("the export", again)):
                out = model.generate(
                    prompt_S[None], max_new_tokens=GREEDY, do_sample=False, eos_token_id=None, pad_token_id=0, **start
                )[0, first:].tolist()
                require(out == here, found=f"{out} of {name}", expected=f"{here}")


def _greedy(pair: Pair, prompt_S: Tensor) -> list[int]:
    """What our model writes after a prompt; an encoder-decoder for it as its source."""
    if not pair.reads_source:
        return list(sample(pair.ours, prompt_S, tokens=GREEDY, temperature=0))
    steps = targets(pair.ours, Source(prompt_S[None]), start=START, end=-1, tokens=GREEDY)
    return [int(token_B[0]) for token_B in steps]


def compared(case: Case) -> Iterator[tuple[Mapping[str, Any], dict[str, tuple[float, float]]]]:
    """For each tiny configuration: the largest difference of logits, experts and gradients, each with its bound."""
    family = case.spec_as(FormatSpec)
    for config in _with_transformers(case):
        with imported(family, config) as pair:
            ids_BS = peer.tokens(int(config["vocab_size"]))
            logits, gradients = peer.with_gradients(pair.theirs, ids_BS)
            source = {"source": Source(peer.source_of(ids_BS))} if pair.reads_source else {}
            output = pair.ours(ids_BS, **source)
            output.y.square().mean().backward()
            largest = max(float(logits.abs().max()), 1.0)
            found = {"logits": (float((output.y.detach() - logits).abs().max()) / largest, LOGITS)}
            chosen = [
                report.routing.expert_TK.sort(-1).values
                for report in output.reports.values()
                if isinstance(report.routing, TokenChoice)
            ]
            theirs = peer.chosen_experts(pair.theirs, ids_BS)
            same = len(chosen) == len(theirs) and all(map(torch.equal, chosen, theirs))
            found["experts of a token"] = (0.0 if same else 1.0, 0.0)
            with peer.saved(pair.theirs, gradients) as folder:
                found["gradients"] = (_largest_difference(pair.ours, folder), GRADIENTS)
            yield config, found


def _largest_difference(ours: Model, folder: Path) -> float:
    """Of gradients, as a share of the largest of each tensor, or of 1e-3 of the largest of all."""
    found = inspect(folder)
    want = {
        name: torch.cat([piece.flatten() for piece in found.table.pieces(name, found.folder.read)])
        for name in found.table.ours
    }
    floor = 1e-3 * max(float(each.abs().max()) for each in want.values())
    worst = 0.0
    for name, parameter in ours.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(float(want[name].abs().max()), floor)
        worst = max(worst, float((grad.flatten() - want[name]).abs().max()) / scale)
    return worst


def _with_transformers(case: Case) -> list[Mapping[str, Any]]:
    import pytest

    pytest.importorskip("transformers")
    return list(case.spec_as(FormatSpec).tiny())


def _loaded(case: Case, folder: Path) -> Any:
    loader = getattr(peer.transformers(), case.spec_as(FormatSpec).auto)
    return loader.from_pretrained(folder, attn_implementation="eager").eval()


def _exported(pair: Pair) -> Path:
    out = pair.folder.parent / "out"
    build(HuggingFace()).export(pair.run / "checkpoints" / "step-00000000", out)
    return out


def _tensors(folder: Path) -> dict[str, Tensor]:
    opened = Folder(folder)
    return {name: opened.read(name, (0,) * len(shape), shape) for name, shape in opened.shapes().items()}
