# train.py
"""Lightning's command line over moekit's recipes: ``python train.py fit --config fit.yaml``."""

from lightning.pytorch.cli import LightningCLI

from moekit.training import LitMoE

if __name__ == "__main__":
    LightningCLI(LitMoE)
