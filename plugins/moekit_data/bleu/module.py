"""Translates the validation pairs, and scores the translations."""

from __future__ import annotations

from typing import final

from moekit.contracts import Evaluation, Evaluator, Trained
from moekit.errors import MoekitError
from moekit.extras import require
from moekit_data.bleu import Bleu
from moekit_data.bleu.scoring import Translation, figures

MARGIN = 8
"""Tokens that any translation may have beyond twice the longest reference of its batch."""


@final
class BleuEvaluator(Evaluator):
    """BLEU and chrF by language, which is the domain of a pair; a table and a plot of the translations.

    Raises:
        MissingPackage: sacrebleu or matplotlib is not installed.
    """

    def __init__(self, spec: Bleu) -> None:
        require("translation", "the evaluator 'bleu'", "sacrebleu", "matplotlib")

    def evaluate(self, trained: Trained) -> Evaluation:
        """The scores, ``translations.tsv`` with every translation, and ``translations.png``, chrF by language.

        Raises:
            MoekitError: the data is not text, or yields no pairs.
        """
        from moekit_data.bleu.picture import draw, write  # loads matplotlib

        made = translations(trained)
        files = [write(made, trained.folder / "translations.tsv"), draw(made, trained.folder / "translations.png")]
        return Evaluation(values=figures(made), files=files)


def translations(trained: Trained) -> list[Translation]:
    """The validation pairs with the model's greedy translations, language after language.

    Raises:
        MoekitError: the data is not text, or yields no pairs.
    """
    tokenizer, names = trained.tokenizer, trained.data.domain_names()
    made: list[tuple[int, Translation]] = []
    for batch in trained.data.validation_batches():
        if batch.source is None or batch.valid is None:
            raise MoekitError(f"{type(trained.data).__name__} yields no pairs to translate")
        longest = int(batch.valid.sum(-1).max())
        outputs = trained.generate(batch.source, max_tokens=2 * longest + MARGIN)
        for row, output in enumerate(outputs):
            tokens, valid = batch.source
            source = tokenizer.decode(tokens[row] if valid is None else tokens[row][valid[row]])
            reference = tokenizer.decode(batch.targets[row][batch.valid[row]])
            domain = 0 if batch.domain is None else int(batch.domain[row])
            language = names[domain] if names else ""
            text = source.removeprefix(f"<{language}> ")
            made.append((domain, Translation(language, text, reference, tokenizer.decode(output))))
    return [each for _, each in sorted(made, key=lambda pair: pair[0])]
