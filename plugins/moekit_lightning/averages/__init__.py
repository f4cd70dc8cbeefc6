"""``callbacks: {ema: {use: ema}}``: averages of the weights over training."""

from moekit.spec.fields import option
from moekit.spec.kinds import CallbackSpec


class EMA(CallbackSpec):
    """An exponential moving average of the weights, which validations use and checkpoints hold."""

    decay: float = option(0.999, "weight of the average so far, at each update", ge=0, lt=1)
    every: int = option(1, "optimizer steps between updates", ge=1)


class SWA(CallbackSpec):
    """The mean of the weights after every ``every`` steps in the last part of the run (stochastic weight averaging)."""

    start: float = option(0.75, "fraction of the run after which the mean begins", ge=0, lt=1)
    every: int = option(1, "optimizer steps between updates", ge=1)
