from pathlib import Path

from moekit.component import Component
from moekit.training.run.hooks import EndedRun, StartingRun
from moekit_lightning.attach import MoECallback as MoECallback
from moekit_lightning.averages import EMA as EMA
from moekit_lightning.averages import SWA as SWA
from moekit_lightning.ddp import DDP as DDP
from moekit_lightning.mlflow import MLflow as MLflow
from moekit_lightning.sharded import Sharded as Sharded
from moekit_lightning.wandb import WandB as WandB

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
def moekit_run_starting(run: StartingRun) -> None: ...
def moekit_run_ended(run: EndedRun) -> list[Path]: ...
