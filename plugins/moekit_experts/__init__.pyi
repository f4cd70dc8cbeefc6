from moekit.component import Component
from moekit_experts.ffn import Ffn as Ffn
from moekit_experts.ffn.module import FfnExperts as FfnExperts
from moekit_experts.glu import Glu as Glu
from moekit_experts.glu.module import GluExperts as GluExperts
from moekit_experts.linear import Linear as Linear
from moekit_experts.linear import Logistic as Logistic
from moekit_experts.linear.module import LinearExperts as LinearExperts
from moekit_experts.lora import Lora as Lora
from moekit_experts.lora.module import LoraExperts as LoraExperts

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
