from moekit.component import Component
from moekit_optimizers.adafactor import Adafactor as Adafactor
from moekit_optimizers.adafactor.module import AdafactorOptimizer as AdafactorOptimizer
from moekit_optimizers.adamw import AdamW as AdamW
from moekit_optimizers.constant import Constant as Constant
from moekit_optimizers.cosine import Cosine as Cosine
from moekit_optimizers.inverse_sqrt import InverseSqrt as InverseSqrt
from moekit_optimizers.sgd import SGD as SGD
from moekit_optimizers.stages import Stages as Stages
from moekit_optimizers.steps import Steps as Steps
from moekit_optimizers.wsd import WSD as WSD

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
