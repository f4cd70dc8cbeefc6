from moekit.component import Component
from moekit_models.decoder import Decoder as Decoder
from moekit_models.decoder import OtherAttention as OtherAttention
from moekit_models.decoder.module import DecoderModel as DecoderModel
from moekit_models.encoder_decoder import EncoderDecoder as EncoderDecoder
from moekit_models.encoder_decoder.module import EncoderDecoderModel as EncoderDecoderModel
from moekit_models.gqa import GQA as GQA
from moekit_models.gqa.module import GroupedQueryAttention as GroupedQueryAttention
from moekit_models.lstm import LSTM as LSTM
from moekit_models.lstm.module import LSTMModel as LSTMModel
from moekit_models.mixture import Mixture as Mixture
from moekit_models.mixture.module import MixtureModel as MixtureModel
from moekit_models.mla import MLA as MLA
from moekit_models.mla.module import MultiHeadLatentAttention as MultiHeadLatentAttention
from moekit_models.mlp import MLP as MLP
from moekit_models.mlp.module import MLPModel as MLPModel
from moekit_models.relative import Relative as Relative
from moekit_models.relative.module import RelativeAttention as RelativeAttention

MOEKIT_API: int

def moekit_components() -> list[Component]: ...
