"""``logger: {wandb: {use: wandb, project: moe}}``: Weights & Biases."""

from moekit.spec.fields import option
from moekit.spec.kinds import LoggerSpec


class WandB(LoggerSpec):
    """Logs to Weights & Biases. A run that is resumed continues the same run there."""

    project: str = option("moekit", "the project there")
    entity: str = option("", "the user or team (default: the one that is logged in)")
    offline: bool = option(False, "write to the run's folder only; 'wandb sync' sends it later")
    tags: list[str] = option([], "tags of the run")
