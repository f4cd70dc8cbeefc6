"""A recipe as a tree of Hydra's config groups: ``conf/config.yaml`` extends a recipe, ``conf/router`` has its routers.

    python train.py                                          one run
    python train.py router=hash balancers=none               other files of the groups
    python train.py -m router=topk,hash                      a run of each
    python train.py trainer.max_steps=40 +optimizer.lr=1e-3  any option; + for one that the tree does not have yet

Look at the paths: Hydra composes the tree, moekit checks it as it checks any recipe, and each run is below Hydra's
folder. Needs hydra-core. Each run takes 5 s on one core.
"""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import moekit


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    """Trains the composed recipe; returns the validation loss, which Hydra's sweepers minimise."""
    chosen = HydraConfig.get().runtime
    run = moekit.train(config, out=chosen.output_dir, name="run", quiet=True)
    loss = float(run.outcome["validation"]["loss"])
    print(f"router {chosen.choices.router:6}  validation loss {loss:.3f}  in {run.path}")
    return loss


if __name__ == "__main__":
    main()
