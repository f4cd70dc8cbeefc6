"""moekit: Mixture-of-Experts as plugins.

``moekit.MoELayer`` is the layer; ``moekit.load`` makes a spec of a recipe; ``moekit.build`` builds it. Names are
imported on first use, so that ``import moekit`` and the command line stay fast and import no torch before it is needed.
"""

from __future__ import annotations

from moekit.lazy import imports_in, lazy_exports

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is; importing typing would cost `moekit --help` a third of its time
if TYPE_CHECKING:
    from moekit.cache import Cache as Cache
    from moekit.component import API_VERSION as API_VERSION
    from moekit.component import Component as Component
    from moekit.component import recipes_in as recipes_in
    from moekit.contracts import BalanceContext as BalanceContext
    from moekit.contracts import Balancer as Balancer
    from moekit.contracts import Batch as Batch
    from moekit.contracts import Data as Data
    from moekit.contracts import Dispatched as Dispatched
    from moekit.contracts import Dispatcher as Dispatcher
    from moekit.contracts import Evaluation as Evaluation
    from moekit.contracts import Evaluator as Evaluator
    from moekit.contracts import ExpertBank as ExpertBank
    from moekit.contracts import Init as Init
    from moekit.contracts import LayerDims as LayerDims
    from moekit.contracts import LayerReport as LayerReport
    from moekit.contracts import LossSum as LossSum
    from moekit.contracts import LossTerm as LossTerm
    from moekit.contracts import Model as Model
    from moekit.contracts import ModelOutput as ModelOutput
    from moekit.contracts import Objective as Objective
    from moekit.contracts import Router as Router
    from moekit.contracts import Source as Source
    from moekit.contracts import Tokenizer as Tokenizer
    from moekit.contracts import Trained as Trained
    from moekit.contracts.layer import Groups as Groups
    from moekit.contracts.layer import UniformGroups as UniformGroups
    from moekit.errors import CheckpointError as CheckpointError
    from moekit.errors import DataError as DataError
    from moekit.errors import MoekitError as MoekitError
    from moekit.errors import PluginError as PluginError
    from moekit.errors import SpecError as SpecError
    from moekit.hookspecs import hookimpl as hookimpl
    from moekit.layer import MoELayer as MoELayer
    from moekit.registry import build as build
    from moekit.registry import temporary as temporary
    from moekit.routing import ExpertChoice as ExpertChoice
    from moekit.routing import Pairs as Pairs
    from moekit.routing import Routing as Routing
    from moekit.routing import Soft as Soft
    from moekit.routing import TokenChoice as TokenChoice
    from moekit.spec import load as load
    from moekit.spec import to_plain as to_plain
    from moekit.spec.fields import MetricInfo as MetricInfo
    from moekit.spec.fields import Spec as Spec
    from moekit.spec.fields import group as group
    from moekit.spec.fields import option as option
    from moekit.spec.fields import slot as slot
    from moekit.spec.fields import slots as slots
    from moekit.spec.kinds import AttentionSpec as AttentionSpec
    from moekit.spec.kinds import BalancerSpec as BalancerSpec
    from moekit.spec.kinds import DataSpec as DataSpec
    from moekit.spec.kinds import DispatcherSpec as DispatcherSpec
    from moekit.spec.kinds import EvaluatorSpec as EvaluatorSpec
    from moekit.spec.kinds import ExpertSpec as ExpertSpec
    from moekit.spec.kinds import ModelSpec as ModelSpec
    from moekit.spec.kinds import ObjectiveSpec as ObjectiveSpec
    from moekit.spec.kinds import OptimizerSpec as OptimizerSpec
    from moekit.spec.kinds import RouterSpec as RouterSpec
    from moekit.spec.kinds import ScheduleSpec as ScheduleSpec
    from moekit.spec.kinds import TokenizerSpec as TokenizerSpec

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_exports(__name__, imports_in(__file__))
