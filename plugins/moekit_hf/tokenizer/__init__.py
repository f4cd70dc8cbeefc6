"""A tokenizer of Hugging Face's: whatever one ``tokenizer.json`` describes. Torch-free: options and component."""

from moekit.spec.fields import option
from moekit.spec.kinds import TokenizerSpec


class TokenizerFile(TokenizerSpec):
    """Options of a tokenizer that is read from a file. An imported run has the file's text in its checkpoint."""

    file: str = option("", "a tokenizer.json; none where a checkpoint or 'start' brings it")
    end: str = option("", "the token that ends a document, such as </s>; none for no end")
    stops: list[int] = option([], "tokens at which a generated text ends, by number; an import has the model's own")
