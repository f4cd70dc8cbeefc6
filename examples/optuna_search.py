"""Optuna searches over keys of a recipe, and ends poor trials early.

Look at the trials: each is an ordinary run, which ``moekit compare`` and ``moekit report`` read, and its parameters are
overrides. A grid needs no Optuna: ``moekit sweep``. Needs optuna. Run ``python examples/optuna_search.py`` (15 s on one
core).
"""

from __future__ import annotations

import tempfile

import lightning as L
import optuna

import moekit

BASE = {
    "extends": "base/language_model",
    "model": {
        "dim": 32,
        "depth": 2,
        "attention": {"heads": 2, "kv_heads": 2, "head_dim": 16},
        "moe": {
            "at": {"every": 1},
            "router": {"use": "topk", "top_k": 1, "score": "sigmoid"},
            "experts": {"use": "glu", "count": 8, "hidden": 32},
            "dispatcher": {"use": "grouped"},
            "balancers": {"bias": {"use": "sign_bias", "rate": 1e-2}},
        },
    },
    "data": {"domains": ["python"], "megabytes": 0.2, "seq": 32, "batch": 4, "validation_windows": 64},
    "trainer": {"max_steps": 60, "val_check_interval": 20, "accelerator": "cpu"},
}


class Prune(L.Callback):
    """Ends a trial whose validation loss is worse than the median of the others after as many steps."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.trial.report(float(trainer.callback_metrics["val/loss"]), trainer.global_step)
        if self.trial.should_prune() and trainer.global_step < trainer.max_steps:
            raise optuna.TrialPruned


def objective(trial: optuna.Trial, folder: str) -> float:
    """One run. The names of Optuna's parameters are paths in the recipe."""
    values = {
        "optimizer.lr": trial.suggest_float("optimizer.lr", 3e-4, 1e-1, log=True),
        "model.moe.router.top_k": trial.suggest_categorical("model.moe.router.top_k", [1, 2, 4]),
    }
    overrides = [f"{path}={value}" for path, value in values.items()]
    run = moekit.train(BASE, overrides, out=folder, name=f"trial-{trial.number}", callbacks=[Prune(trial)], quiet=True)
    return float(run.outcome["validation"]["loss"])


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    with tempfile.TemporaryDirectory() as folder:
        study.optimize(lambda trial: objective(trial, folder), n_trials=8)
    print("trial       lr  top_k  validation loss")
    for trial in study.trials:
        lr, top_k = trial.params.values()
        last = trial.intermediate_values[max(trial.intermediate_values)]
        end = (
            ""
            if trial.state == optuna.trial.TrialState.COMPLETE
            else f"  ended at step {max(trial.intermediate_values)}"
        )
        print(f"{trial.number:5} {lr:8.4f}  {top_k:5}  {last:15.3f}{end}")
    print(f"best: {' '.join(f'{path}={value:.3g}' for path, value in study.best_params.items())}")
    assert 1e-3 < study.best_params["optimizer.lr"] < 1e-1, "rates at the low end learn too little in 60 steps"


if __name__ == "__main__":
    main()
