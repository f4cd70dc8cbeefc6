from moekit.component import Component
from moekit_routers.dense import Dense as Dense
from moekit_routers.dense.module import DenseRouter as DenseRouter
from moekit_routers.hash import Hash as Hash
from moekit_routers.hash.module import HashRouter as HashRouter
from moekit_routers.hierarchical import Hierarchical as Hierarchical
from moekit_routers.hierarchical.module import HierarchicalRouter as HierarchicalRouter
from moekit_routers.noisy_topk import NoisyTopK as NoisyTopK
from moekit_routers.noisy_topk.module import NoisyTopKRouter as NoisyTopKRouter
from moekit_routers.sparse_mixer import SparseMixer as SparseMixer
from moekit_routers.sparse_mixer.module import SparseMixerRouter as SparseMixerRouter
from moekit_routers.strict import Strict as Strict
from moekit_routers.strict.module import StrictRouter as StrictRouter
from moekit_routers.topk import TopK as TopK
from moekit_routers.topk.module import TopKRouter as TopKRouter

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
