from moekit.component import Component
from moekit_objectives.causal_lm import CausalLM as CausalLM
from moekit_objectives.causal_lm.module import CausalLMObjective as CausalLMObjective
from moekit_objectives.competitive import Competitive as Competitive
from moekit_objectives.competitive.module import CompetitiveObjective as CompetitiveObjective
from moekit_objectives.squared_error import SquaredError as SquaredError
from moekit_objectives.squared_error.module import SquaredErrorObjective as SquaredErrorObjective

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
