"""transformers: the experts of its Mixtral block, and its own model of a recipe, with the same weights.

Each is given once for each implementation of the library's experts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from moekit.contracts import Batch, ExpertBank, Exporter, Model
from moekit.errors import MoekitError
from moekit.registry import build
from moekit.spec import component_spec, to_plain
from moekit.spec.recipe import Recipe
from moekit.training.run.folder import checkpoint_of
from moekit.training.run.imported import write_run
from moekit_bench.measure import Variant
from moekit_bench.peers import PeerModel
from moekit_bench.workload import Workload, stacked_weights

IMPLEMENTATIONS: Final = ("grouped_mm", "eager")
NEEDS_VERSION_5: Final = "--against transformers: needs version 5 or later, whose experts are stacked"


def mixtral_experts(work: Workload, experts: ExpertBank) -> list[Variant]:
    """The experts of the Mixtral block, on the same routing. They share their weights with ``experts``.

    Raises:
        MoekitError: a version whose experts are not stacked, or in another layout.
    """
    weights = stacked_weights(experts)
    leaves = [work.x_TD, work.gate_TK, *weights]
    return [
        Variant(name=f"transformers {name}", forward=_experts(work, *weights, name), leaves=leaves, weights=weights)
        for name in IMPLEMENTATIONS
    ]


def _experts(work: Workload, w_in_EHD: Tensor, w_out_EOH: Tensor, implementation: str) -> Callable[[], Tensor]:
    _, D, H, E, K = work.shape
    mixtral: Any = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    config: Any = importlib.import_module("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=H, num_local_experts=E, num_experts_per_tok=K
    )
    config._experts_implementation = implementation
    if not hasattr(mixtral, "MixtralExperts"):
        raise MoekitError(NEEDS_VERSION_5)
    with torch.device("meta"):
        block: Any = mixtral.MixtralExperts(config)
    if block.gate_up_proj.shape != w_in_EHD.shape or block.down_proj.shape != w_out_EOH.shape:
        raise MoekitError("--against transformers: this version stores its weights in another layout")
    block.gate_up_proj, block.down_proj = w_in_EHD, w_out_EOH  # parameters already, and shared
    return lambda: block(work.x_TD, work.routing.expert_TK, work.gate_TK.to(work.x_TD.dtype))


def models(recipe: Recipe, model: Model) -> list[PeerModel]:
    """The library's model of a recipe, with the weights of ours, once for each implementation of its experts.

    Raises:
        MoekitError: the library has no such model, or the recipe trains otherwise than the plain loop does.
    """
    check_trained_alike(recipe)
    with TemporaryDirectory(prefix="moekit-bench-") as folder:
        path = exported(recipe, model, Path(folder))
        return [_model(path, implementation) for implementation in IMPLEMENTATIONS]


def check_trained_alike(recipe: Recipe) -> None:
    """Rejects a recipe that a loop with their loss and torch's AdamW does not train.

    Raises:
        MoekitError: its differences.
    """
    plain = to_plain(recipe)
    must = {"objective.use": "causal_lm", "optimizer.use": "adamw", "model.mtp": None}
    found = {path: _at(plain, path) for path in must}
    wrong = [f"{path}={found[path]} (expected {must[path]!r})" for path in must if found[path] != must[path]]
    if wrong:
        what = "--against transformers: a plain loop with its model does not train as this recipe does"
        raise MoekitError("\n  ".join([what, *wrong]))


def exported(recipe: Recipe, model: Model, folder: Path) -> Path:
    """The folder of a model in the library's format, below ``folder``.

    Raises:
        MoekitError: the library has no such model; says how the nearest one differs.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    write_run(folder / "run", recipe, meta, lambda name: iter([state[name]]), {})
    exporter: Exporter = build(component_spec("exporter", {"use": "hf"}))
    exporter.export(checkpoint_of(str(folder / "run")), folder / "exported")
    return folder / "exported"


def loaded(folder: Path, implementation: str) -> Any:
    """The library's model in a folder, in fp32 and evaluation mode, with an implementation of its experts.

    Raises:
        MoekitError: its version is below 5.
    """
    library: Any = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    model: Any = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not hasattr(model, "set_experts_implementation"):
        raise MoekitError(NEEDS_VERSION_5)
    model.set_experts_implementation(implementation)
    return model.eval()


def _model(folder: Path, implementation: str) -> PeerModel:
    model = loaded(folder, implementation)

    def loss(batch: Batch) -> Tensor:
        out: Tensor = model(batch.inputs, labels=batch.targets, shift_labels=batch.targets, use_cache=False).loss
        return out

    name = f"transformers {type(model).__name__.removesuffix('ForCausalLM')} {implementation}"
    note = "a plain loop, without the steps and losses of balancers; nothing logged or checked"
    return PeerModel(name=name, model=model, loss=loss, note=note)


def _at(plain: Mapping[str, Any], path: str) -> Any:
    value: Any = plain
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
