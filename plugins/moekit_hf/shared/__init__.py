"""What families share: rows of their tables, and groups of fields with the options that they describe. Torch-free.

Each group has two functions: ``x_options`` reads fields into options, ``x_fields`` writes options as fields.
"""

from moekit_hf.shared.attention import gqa_fields as gqa_fields
from moekit_hf.shared.attention import gqa_options as gqa_options
from moekit_hf.shared.attention import mla_fields as mla_fields
from moekit_hf.shared.attention import mla_options as mla_options
from moekit_hf.shared.attention import mla_rules as mla_rules
from moekit_hf.shared.attention import partial_fields as partial_fields
from moekit_hf.shared.attention import refuse_window as refuse_window
from moekit_hf.shared.decoder import at_of as at_of
from moekit_hf.shared.decoder import biased_moe_fields as biased_moe_fields
from moekit_hf.shared.decoder import biased_moe_options as biased_moe_options
from moekit_hf.shared.decoder import decoder_fields as decoder_fields
from moekit_hf.shared.decoder import decoder_options as decoder_options
from moekit_hf.shared.decoder import first_of as first_of
from moekit_hf.shared.decoder import indices as indices
from moekit_hf.shared.decoder import mixture_layers as mixture_layers
from moekit_hf.shared.decoder import sparse_fields as sparse_fields
from moekit_hf.shared.decoder import sparse_options as sparse_options
from moekit_hf.shared.rope import rope_fields as rope_fields
from moekit_hf.shared.rope import rope_group as rope_group
from moekit_hf.shared.rope import rope_options as rope_options
from moekit_hf.shared.tables import ATTENTION as ATTENTION
from moekit_hf.shared.tables import DENSE as DENSE
from moekit_hf.shared.tables import ENDS as ENDS
from moekit_hf.shared.tables import EXPERTS as EXPERTS
from moekit_hf.shared.tables import NORMS as NORMS
from moekit_hf.shared.tables import ROUTER as ROUTER
from moekit_hf.shared.tables import SELECTION_BIAS as SELECTION_BIAS
from moekit_hf.shared.tables import SHARED as SHARED
from moekit_hf.shared.tables import glu as glu
