"""A data set of Hugging Face's ``datasets``: from the hub, or local Parquet, Arrow, JSON lines and other files.

``pip install 'moekit[datasets]'``.
"""

from collections.abc import Iterable

from moekit.spec.fields import option
from moekit_data.specs import TextSpec


class HfDataset(TextSpec):
    """Options of a data set, named as in ``datasets.load_dataset``. Its documents are read in order, as a stream."""

    path: str = option(help="name on the hub, a folder, or a format of data_files: json, parquet, arrow, text, csv")
    name: str | None = option(None, "configuration of the data set")
    data_files: list[str] | None = option(None, "files to read, with * for any name; relative to where moekit runs")
    revision: str | None = option(None, "branch, tag or commit on the hub; default: the newest")
    split: str = option("train", "which part trains")
    validation_split: str | None = option(None, "which part validates; default: a share of split")
    text_key: str = option("text", "the column of the text")
    streaming: bool = option(True, "whether documents are read as they are needed; else all are downloaded first")
    shuffle_windows: int = option(
        1024, "windows that are read ahead for each micro-batch of a step, and shuffled; 1 keeps the order", ge=1
    )
    learn_megabytes: float = option(
        64.0, "text from the start of the stream that a tokenizer learns from, at most, MB (10^6 bytes)", gt=0
    )
    cache: str | None = option(
        None, "folder of bookmarks, from which a resumed run continues without reading again what it has read; "
        "default: the variable MOEKIT_CACHE, or moekit in the user's folder of caches",
    )  # fmt: skip

    def check(self) -> Iterable[str]:
        """Names must not be empty, and no part both trains and validates."""
        for option_name in ("path", "split", "validation_split", "text_key"):
            value = getattr(self, option_name)
            if value is not None and not value.strip():
                yield f"{option_name} is empty"
        if self.validation_split == self.split:
            yield f"split={self.split!r} would also validate; give another validation_split, or null for a share of it"
        if self.data_files is not None and not all(each.strip() for each in self.data_files):
            yield f"data_files={self.data_files!r} must be names of files, or null"
        if self.cache is not None and not self.cache.strip():
            yield "cache is empty; give a folder, or null"
