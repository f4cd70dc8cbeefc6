from moekit.training.balance import BalanceStep as BalanceStep
from moekit.training.balance import StepLoad as StepLoad
from moekit.training.balance import max_violation as max_violation
from moekit.training.callbacks.checkpoint import AtomicCheckpointIO as AtomicCheckpointIO
from moekit.training.data import StepLoader as StepLoader
from moekit.training.module import LitMoE as LitMoE
