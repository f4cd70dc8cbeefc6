"""Export to a folder that ``transformers`` loads. Torch-free: options and component."""

from typing import Literal

from moekit.spec.fields import option
from moekit.spec.kinds import ExporterSpec


class HuggingFace(ExporterSpec):
    """Options of the export."""

    family: str = option("", "the format to write, as moekit ls formats names it; default: the one that fits")
    dtype: Literal["", "float32", "bfloat16", "float16"] = option(
        "", "of the written weights; selection biases stay float32; default: as in the checkpoint"
    )
    shard_gb: float = option(5.0, "largest size of a file of weights, GB (10^9 bytes)", gt=0)
