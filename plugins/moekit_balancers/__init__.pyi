from moekit.component import Component
from moekit_balancers.communication_balance import CommunicationBalance as CommunicationBalance
from moekit_balancers.communication_balance.module import CommunicationBalanceLoss as CommunicationBalanceLoss
from moekit_balancers.cv_squared import CVSquared as CVSquared
from moekit_balancers.cv_squared.module import CVSquaredLoss as CVSquaredLoss
from moekit_balancers.device_balance import DeviceBalance as DeviceBalance
from moekit_balancers.device_balance.module import DeviceBalanceLoss as DeviceBalanceLoss
from moekit_balancers.load_balance import LoadBalance as LoadBalance
from moekit_balancers.load_balance.module import LoadBalanceLoss as LoadBalanceLoss
from moekit_balancers.sequence_balance import SequenceBalance as SequenceBalance
from moekit_balancers.sequence_balance.module import SequenceBalanceLoss as SequenceBalanceLoss
from moekit_balancers.sign_bias import SignBias as SignBias
from moekit_balancers.sign_bias.module import SignBiasBalancer as SignBiasBalancer
from moekit_balancers.z_loss import ZLoss as ZLoss
from moekit_balancers.z_loss.module import RouterZLoss as RouterZLoss

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
