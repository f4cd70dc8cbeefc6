"""The contracts that plugins implement and all of moekit relies on: of a layer (``layer``), of a run (``run``)."""

from moekit.cache import Cache as Cache
from moekit.contracts.layer import BalanceContext as BalanceContext
from moekit.contracts.layer import Balancer as Balancer
from moekit.contracts.layer import Dispatched as Dispatched
from moekit.contracts.layer import Dispatcher as Dispatcher
from moekit.contracts.layer import ExpertBank as ExpertBank
from moekit.contracts.layer import LayerDims as LayerDims
from moekit.contracts.layer import LayerReport as LayerReport
from moekit.contracts.layer import ModuleExperts as ModuleExperts
from moekit.contracts.layer import Router as Router
from moekit.contracts.layer import StandardForm as StandardForm
from moekit.contracts.run import Batch as Batch
from moekit.contracts.run import Data as Data
from moekit.contracts.run import LossSum as LossSum
from moekit.contracts.run import Model as Model
from moekit.contracts.run import ModelOutput as ModelOutput
from moekit.contracts.run import Objective as Objective
from moekit.contracts.run import Source as Source
from moekit.init import Init as Init
from moekit.init import Table as Table
from moekit.init import init_matrices as init_matrices
from moekit.routing import LossTerm as LossTerm
