"""Scores of models with known translations: one copies its source, one writes nothing."""

from pathlib import Path

import pytest
import torch

from moekit import Batch, Model, ModelOutput, Trained
from moekit.inference.evaluation import evaluate
from moekit.inference.generate import greedy
from moekit.registry import build
from moekit_data.bleu import Bleu
from moekit_data.bleu.module import translations
from moekit_data.bleu.scoring import Translation, bleu, chrf, figures
from moekit_data.bpe import BytePairs
from moekit_data.bytes import Bytes
from moekit_data.translations import Translations


class Copies(Model):
    """Writes the source after its tag, up to ``upto`` tokens; then the end."""

    def __init__(self, end: int, upto: int = 1000) -> None:
        super().__init__()
        self.end, self.upto = end, upto
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, inputs, *, valid=None):
        raise NotImplementedError

    def on(self, batch: Batch) -> ModelOutput:
        self.modes.append(self.training)
        assert batch.source is not None and batch.source.valid is not None
        B, S = batch.inputs.shape
        written = torch.full((B, S + 1), self.end)
        source = batch.source.tokens[:, 1:].where(batch.source.valid[:, 1:], self.end)[:, : min(S, self.upto)]
        written[:, : source.shape[1]] = source
        return ModelOutput(y=self.scale * torch.nn.functional.one_hot(written[:, :S], 300).float())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Translations into a language that is English, and into one that is not."""
    rows = [(f"%(n)s of {n} little words and {'more ' * (n % 4)}of them", n) for n in range(40)]
    file = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = [f"{text}\t{text}\tcopy\n{text}\t{'ש' * 9} {n} %(n)s\the" for text, n in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


PAIRS = BytePairs(vocab=297)


def prepared(path, tokenizer=PAIRS, **options):
    data = build(
        Translations(
            path=path,
            **{"languages": ["copy", "he"], "vocab": 300, "batch_tokens": 200, "validation": 0.4, **options},
            tokenizer=tokenizer,
        )
    )
    data.prepare()
    return data


def trained(data, model, folder=Path()):
    return Trained(model=model, data=data, folder=folder, generate=greedy(model, data.tokenizer))


def scores(data, model, folder):
    return evaluate({"bleu": build(Bleu())}, model, data, folder).values


def test_a_copy_scores_100_where_it_is_right(path, tmp_path):
    data = prepared(path, languages=["copy"])
    model = Copies(data.tokenizer.end).train()
    values = scores(data, model, tmp_path)
    count = sum(len(batch.inputs) for batch in data.validation_batches())
    assert values == {
        "bleu": pytest.approx(100),
        "chrf": pytest.approx(100),
        "scored_pairs": count,
        "placeholders_kept": 1.0,
        "pairs_with_placeholders": count,
    }
    assert model.training and set(model.modes) == {False}  # decoded in evaluation mode, and left as it was
    assert scores(data, model, tmp_path) == values


def test_scores_are_means_over_languages(path, tmp_path):
    data = prepared(path)
    values = scores(data, Copies(data.tokenizer.end), tmp_path)
    made = translations(trained(data, Copies(data.tokenizer.end)))
    parts = [[each for each in made if each.language == name] for name in ("copy", "he")]
    assert values["bleu"] == pytest.approx((100 + bleu(parts[1])) / 2) and bleu(parts[1]) < 50
    assert values["chrf"] == pytest.approx((100 + chrf(parts[1])) / 2) and chrf(parts[1]) < 50


def test_translations_are_in_the_order_of_their_sources(path):
    """Language by language, although batches mix them."""
    data = prepared(path, batch_tokens=64)
    made = translations(trained(data, Copies(data.tokenizer.end)))
    assert [each.output for each in made] == [each.source for each in made]
    assert len({each.source for each in made}) > 4


def test_empty_translations_score_0(path, tmp_path):
    data = prepared(path)
    values = scores(data, Copies(data.tokenizer.end, upto=0), tmp_path)
    assert values["bleu"] == values["chrf"] == values["placeholders_kept"] == 0
    assert {each.output for each in translations(trained(data, Copies(data.tokenizer.end, upto=0)))} == {""}


def test_a_translation_that_never_ends_is_truncated(path):
    """At twice the longest reference in its batch, plus a few tokens."""
    data = prepared(path, languages=["copy"], tokenizer=Bytes(), vocab=258)
    model = Copies(data.tokenizer.end)
    model.end = ord("x")  # writes this without end
    made = translations(trained(data, model))
    longest = max(len(each.source) for each in made) + 1
    for each in made:
        assert each.output.startswith(each.source) and set(each.output[len(each.source) :]) == {"x"}
        assert len(each.output) <= 2 * (longest + 7) + 8


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ("Neuer %(name)s, %s und %s", 1),
        ("%s %(name)s %s", 1),
        ("%(name)s und %s", 0),
        ("%(name)s, %s, %s, %s", 0),
        ("%(Name)s, %s, %s", 0),
    ],
)
def test_placeholders_count_as_kept_if_each_occurs_as_often_in_any_order(output, kept):
    made = [
        Translation("de", "New %(name)s, %s and %s", "Neu: %(name)s", output),
        Translation("de", "no placeholder", "kein Platzhalter", "{x} is not counted"),
    ]
    values = figures(made)
    assert values["placeholders_kept"] == kept and values["pairs_with_placeholders"] == 1
    assert "placeholders_kept" not in figures(made[1:])


def test_languages_without_spaces_are_scored_by_characters():
    """As a single word, one changed character would score 0."""
    for name, word in (("ja", "変更を保存しました"), ("zh_Hant", "您的變更已經儲存完成"), ("th", "บันทึกการเปลี่ยนแปลง")):
        near = [Translation(name, "Saved", word, word[:-1] + "x")]
        assert 50 < bleu(near) < 100, name
        assert bleu([near[0]._replace(language="de")]) == 0


def test_bleu_and_chrf_follow_their_equations():
    """BLEU: precisions 5/6, 4/5, 3/4, 2/3, no brevity penalty."""
    made = [Translation("de", "", "the cat sat on the mat", "the cat sat on the rug")]
    assert bleu(made) == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert chrf(made) == pytest.approx(100 * chrf_by_hand("thecatsatontherug", "thecatsatonthemat"))


def chrf_by_hand(output, reference, beta=2.0):
    """Popović 2015: mean precision and recall of character n-grams of orders 1 to 6, F with recall twice as heavy."""
    precisions, recalls = [], []
    for n in range(1, 7):
        made, wanted = ([text[i : i + n] for i in range(len(text) - n + 1)] for text in (output, reference))
        matches = sum(min(made.count(gram), wanted.count(gram)) for gram in set(made))
        precisions.append(matches / len(made))
        recalls.append(matches / len(wanted))
    p, r = sum(precisions) / 6, sum(recalls) / 6
    return (1 + beta**2) * p * r / (beta**2 * p + r)


def test_a_run_writes_a_table_and_a_plot_of_its_translations(path, tmp_path):
    data = prepared(path)
    run = trained(data, Copies(data.tokenizer.end), tmp_path / "run")
    table, bars = build(Bleu()).evaluate(run).files
    assert (table.name, bars.name) == ("translations.tsv", "translations.png")
    head, *rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    assert head == ["language", "source", "reference", "output"]
    assert [tuple(row) for row in rows] == translations(trained(data, Copies(data.tokenizer.end)))
    assert bars.read_bytes().startswith(b"\x89PNG")


def test_control_characters_are_escaped_in_the_table(tmp_path):
    from moekit_data.bleu.picture import write

    path = write([Translation("de", "two\nlines", "a\tb", "é\x85\u2028\0 \\n\xa0\ufffd")], tmp_path / "t.tsv")
    _, row = path.read_text(encoding="utf-8").splitlines()
    assert row.split("\t") == ["de", "two\\nlines", "a\\tb", "é\\x85\\u2028\\x00 \\n\xa0\ufffd"]
