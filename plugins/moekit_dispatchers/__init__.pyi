from moekit.component import Component
from moekit_dispatchers.auto import Auto as Auto
from moekit_dispatchers.auto.module import AutoDispatcher as AutoDispatcher
from moekit_dispatchers.capacity import Capacity as Capacity
from moekit_dispatchers.capacity.module import CapacityDispatcher as CapacityDispatcher
from moekit_dispatchers.device_capacity import DeviceCapacity as DeviceCapacity
from moekit_dispatchers.device_capacity.module import DeviceCapacityDispatcher as DeviceCapacityDispatcher
from moekit_dispatchers.expert_parallel import ExpertParallel as ExpertParallel
from moekit_dispatchers.expert_parallel.module import ExpertParallelDispatcher as ExpertParallelDispatcher
from moekit_dispatchers.fused import Fused as Fused
from moekit_dispatchers.fused.module import FusedDispatcher as FusedDispatcher
from moekit_dispatchers.grouped import Grouped as Grouped
from moekit_dispatchers.grouped.module import GroupedDispatcher as GroupedDispatcher
from moekit_dispatchers.loop import Loop as Loop
from moekit_dispatchers.loop.module import LoopDispatcher as LoopDispatcher
from moekit_dispatchers.soft import Soft as Soft
from moekit_dispatchers.soft.module import SoftDispatcher as SoftDispatcher
from moekit_dispatchers.textbook import Textbook as Textbook
from moekit_dispatchers.textbook.module import TextbookDispatcher as TextbookDispatcher
from moekit_dispatchers.triton import Triton as Triton
from moekit_dispatchers.triton.module import TritonDispatcher as TritonDispatcher

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
