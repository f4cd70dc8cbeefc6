"""Pairs as data: split, languages, vocabulary, batches, prompts, state."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.errors import DataError, MoekitError
from moekit.registry import build
from moekit_data.bpe import BytePairs
from moekit_data.bytes import Bytes
from moekit_data.translations import Translations
from moekit_data.translations.batches import Bucket, TokenPair, slices, width
from moekit_data.translations.pairs import Pair, sample, split
from moekit_data.translations.tags import TaggedTokenizer

WORDS = ["one %(n)s", "two words", "three little words", "the fourth of them is longer than the others", "five", "six"]
LANGUAGES = ("de", "th", "el")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """40 sources in three languages, one of which has only half of them."""
    rows = []
    for n in range(40):
        source = f"{WORDS[n % len(WORDS)]} {n}"
        rows += [(source, f"{source} auf Deutsch", "de"), (source, f"{source} ภาษาไทย", "th")]
        if n % 2:
            rows.append((source, f"{source} ελληνικά", "el"))
    file = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    file.write_text("\n".join("\t".join(row) for row in rows), encoding="utf-8")
    return str(file)


def make(path, **options):
    defaults = {"languages": list(LANGUAGES), "batch_tokens": 96, "vocab": 300, "validation": 0.3}
    return build(Translations(path=path, **{**defaults, "tokenizer": BytePairs(vocab=296), **options}))


def prepared(path, **options):
    data = make(path, **options)
    data.prepare()
    return data


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


BYTES = {"tokenizer": Bytes(), "vocab": 260}
KINDS = pytest.mark.parametrize("kind", [{}, BYTES], ids=["bpe", "bytes"])


def test_a_source_is_in_one_split_with_all_its_translations(path):
    data = prepared(path, validation_pairs=99)
    trained = [data.train_batch(generator(seed)) for seed in range(60)]
    train, validation = (
        {data.tokenizer.decode(row).partition("> ")[2] for batch in batches for row in batch.source.tokens}
        for batches in (trained, data.validation_batches())
    )
    assert train and validation and not train & validation
    assert len(train | validation) == 40


@given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from(LANGUAGES)), max_size=30), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_the_split_depends_on_the_source_alone(rows, share):
    pairs = [Pair(source, "x", language) for source, language in rows]
    train, validation = split(pairs, share)
    assert sorted(train + validation) == sorted(pairs)
    assert not {p.source for p in train} & {p.source for p in validation}
    for pair in pairs:  # whatever other pairs there are
        assert split([pair], share)[0] == ([pair] if pair in train else [])


def test_validation_has_the_same_sources_in_each_language(path):
    data = prepared(path, validation_pairs=4)
    by_language = {name: set() for name in data.domain_names()}
    for batch in data.validation_batches():
        for row, domain in zip(batch.source.tokens, batch.domain.tolist(), strict=True):
            by_language[data.domain_names()[domain]].add(data.tokenizer.decode(row).partition("> ")[2])
    assert {len(sources) for sources in by_language.values()} == {4}
    assert by_language["de"] == by_language["th"]
    pairs = [Pair(str(n), "x", name) for n in range(9) for name in LANGUAGES]
    assert sample(reversed(pairs), LANGUAGES, 2) == sample(pairs, LANGUAGES, 2)


@KINDS
def test_a_batch_is_laid_out_as_decoders_and_encoders_need_it(path, kind):
    data = prepared(path, **kind)
    end = data.tokenizer.end
    for batch in (data.train_batch(generator()), *data.validation_batches()):
        inputs, targets, valid, num_bytes, domain, _, source = batch
        assert inputs.dtype == targets.dtype == source.tokens.dtype == torch.int64
        assert inputs.shape == targets.shape == valid.shape and inputs.shape[1] % 8 == 0
        assert source.tokens.shape == source.valid.shape and source.tokens.shape[1] % 8 == 0
        assert (inputs[:, 0] == end).all()
        total = 0
        for row in range(len(inputs)):
            target = targets[row][valid[row]].tolist()
            assert target[-1] == end and end not in target[:-1] and max(target) <= end
            assert inputs[row][valid[row]].tolist() == [end, *target[:-1]]
            tag, *text = source.tokens[row][source.valid[row]].tolist()
            assert tag == end + 1 + int(domain[row]) and max(text) < end
            language = data.domain_names()[int(domain[row])]
            words = data.tokenizer.decode(torch.tensor(target))
            assert data.tokenizer.decode(
                torch.tensor([tag, *text])
            ) == f"<{language}> {words.rpartition(' ')[0]}".replace(" auf", "" if language == "de" else " auf")
            total += len(words.encode())
        assert int(num_bytes) == total
        for mask in (valid, source.valid):
            assert bool((mask[:, 1:] <= mask[:, :-1]).all()) and bool(mask[:, 0].all())


def test_the_longest_of_a_batch_decides_its_width(path):
    data = prepared(path, batch_tokens=64)
    for seed in range(20):
        batch = data.train_batch(generator(seed))
        longest = max(int(batch.valid.sum(1).max()), int(batch.source.valid.sum(1).max()))
        assert len(batch.inputs) == 1 or len(batch.inputs) * (longest + -longest % 8) <= 64
        assert batch.inputs.shape[1] - int(batch.valid.sum(1).max()) < 8


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_slices_hold_every_row_once_and_at_most_the_given_tokens(widths, budget):
    widths.sort()
    parts = slices(widths, budget)
    assert [i for part in parts for i in part] == list(range(len(widths)))
    assert all(len(part) == 1 or len(part) * widths[part[-1]] <= budget for part in parts)
    assert all((len(part) + 1) * widths[after[0]] > budget for part, after in pairwise(parts))


def pairs_of(sizes, lengths=(3, 40)):
    """So many pairs of each language, of alternating lengths."""
    return [
        TokenPair(torch.zeros(lengths[n % len(lengths)], dtype=torch.int64), torch.zeros(2, dtype=torch.int64), domain)
        for domain, size in enumerate(sizes)
        for n in range(size)
    ]


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_languages_are_sampled_by_temperature_and_their_pairs_uniformly(temperature):
    """Batching by length does not change this: a language has p ~ n^(1/T)."""
    sizes = (640, 20, 0)
    bucket = Bucket(pairs_of(sizes), 3, batch_tokens=48, temperature=temperature)
    g = generator()
    sampled = [pair for _ in range(600) for pair in bucket.draw(g)]
    weights = [n ** (1 / temperature) for n in sizes]
    tokens = sum(map(width, sampled))
    for domain, weight in enumerate(weights):
        p = weight / sum(weights)
        share = sum(width(pair) for pair in sampled if pair.domain == domain) / tokens
        assert share == pytest.approx(p, abs=6 * math.sqrt(p / len(sampled)) + 0.01)
    short = sum(width(pair) for pair in sampled if len(pair.source) == 3) / tokens
    assert short == pytest.approx(8 / 48, abs=0.04)  # as many short pairs as long ones


def test_languages_are_the_named_ones_or_all_that_have_enough(path):
    assert list(prepared(path, languages=["th", "de"]).domain_names()) == ["th", "de"]
    assert list(prepared(path, languages=None, min_pairs=30).domain_names()) == ["de", "th"]
    with pytest.raises(DataError, match=r"no language has data\.min_pairs=50 (.|\n)*found de 40, th 40, el 20"):
        prepared(path, languages=None, min_pairs=50)
    with pytest.raises(DataError, match=r"no pairs into 'ell' in .*\n  did you mean 'el'\?\n  languages: de, el, th"):
        prepared(path, languages=["ell"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab": 299}, "tokenizer.vocab=296, the end and 3 languages need vocab=300 at least"),
        ({"vocab": 259, "tokenizer": Bytes()}, "tokenizer.vocab=256, the end and 3 languages need vocab=260 at least"),
        ({"vocab": 297, "languages": None}, "the end and 1 language need vocab=298"),
        ({"languages": ["de", "de"]}, "one or more different languages"),
        ({"languages": []}, "one or more different languages"),
        ({"languages": ["d e"]}, "'d e' is not a language name"),
        ({"path": " "}, "path is empty"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**{"path": path, **options})


def test_a_vocabulary_without_room_for_all_languages_is_refused(path):
    with pytest.raises(DataError, match=r"no room for 3 languages\n  set data\.vocab=300 or more"):
        prepared(path, languages=None, min_pairs=1, vocab=298)


def test_the_vocabulary_has_at_most_the_given_size(path):
    for vocab in (261, 270, 300):
        data = prepared(path, vocab=vocab, tokenizer=BytePairs(vocab=vocab - 4))
        assert data.tokenizer.end + len(LANGUAGES) < vocab
        assert max(int(data.train_batch(generator(n)).source.tokens.max()) for n in range(9)) < vocab


def test_byte_pairs_are_learnt_from_both_sides_of_the_training_pairs_alone(path):
    data = prepared(path, vocab=600, tokenizer=BytePairs(vocab=596))
    assert len(data.tokenizer.encode("<de> three little words")) < 8
    assert len(data.tokenizer.encode("<de> auf Deutsch")) < 6


def test_byte_pairs_are_not_learnt_from_validation_pairs(tmp_path):
    """Their words are as frequent, but stay bytes."""
    held_out = [n for n in range(200) if split([Pair(f"source {n}", "", "de")], 0.3)[1]]
    rows = (f"source {n}\t{'zzyzx' if n in held_out else 'qwert'}\tde" for n in range(200))
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    data = prepared(str(tmp_path / "pairs.tsv"), languages=["de"])
    assert 30 < len(held_out) < 90
    assert len(data.tokenizer.encode("<de> qwert")) == 2 and len(data.tokenizer.encode("<de> zzyzx")) == 6


def test_too_few_pairs_are_refused(tmp_path):
    (tmp_path / "one.tsv").write_text("Save\tSichern\tde\n")
    with pytest.raises(DataError, match=r"too few pairs in .*one\.tsv: (1|0) to train on, (0|1) to validate with"):
        prepared(str(tmp_path / "one.tsv"), languages=["de"])


@KINDS
def test_a_prompt_begins_with_its_language(path, kind):
    data = prepared(path, **kind)
    ids = data.tokenizer.encode(" <th> two words")
    assert ids[0] == data.tokenizer.end + 1 + LANGUAGES.index("th")
    assert data.tokenizer.decode(ids) == "<th> two words"
    example = data.tokenizer.example()
    assert data.tokenizer.decode(data.tokenizer.encode(example)) == example == "<de> Save changes"
    with pytest.raises(MoekitError, match=r"names no language(.|\n)*'<de> Save changes'\n  languages: de, th, el"):
        data.tokenizer.encode("two words")
    with pytest.raises(MoekitError, match=r"no tag <tj>(.|\n)*languages: de, th, el"):
        data.tokenizer.encode("<tj> two words")


@given(st.text(max_size=8), st.text(max_size=8))
@settings(max_examples=40, deadline=None)
def test_decoding_stops_at_the_end(before, after):
    tokenizer = TaggedTokenizer(build(Bytes()))
    tokenizer.learn(["de", "pt_BR"], [])
    encode = tokenizer.text.encode
    ids = torch.cat([encode(before), torch.tensor([tokenizer.end]), encode(after)])
    assert tokenizer.decode(ids) == before.encode(errors="replace").decode().replace("\0", "")
    assert tokenizer.decode(torch.tensor([], dtype=torch.int64)) == ""
    assert tokenizer.decode(torch.tensor([tokenizer.tag("pt_BR")])) == "<pt_BR> "
    assert len(tokenizer.spelling) == len(tokenizer.num_bytes_V()) == 259


@KINDS
def test_the_state_is_plain_and_enough_to_encode_and_decode_pairs(path, kind):
    data = prepared(path, **kind)
    stored = json.loads(json.dumps(data.state()))
    alone = make("/nowhere/at/all", languages=None, **kind)
    assert alone.tokenizer.end is None and alone.domain_names() == () and alone.state() == {}
    with pytest.raises(MoekitError, match=r"prepare\(\) or load_state\(\)"):
        alone.tokenizer.encode("<de> two")
    alone.load_state(stored)
    assert alone.tokenizer.encode("<el> two words").tolist() == data.tokenizer.encode("<el> two words").tolist()
    assert alone.tokenizer.end == data.tokenizer.end and alone.domain_names() == data.domain_names()
    with pytest.raises(MoekitError, match=r"call prepare\(\) first"):
        alone.train_batch(generator())


def test_a_vocabulary_loaded_after_prepare_replaces_the_batches(path):
    first = prepared(path, languages=["el", "de"], vocab=280, tokenizer=BytePairs(vocab=277))
    second = prepared(path)
    second.load_state(first.state())
    assert second.state() == first.state()
    assert second.domain_names() == ("el", "de")
    assert int(second.train_batch(generator()).source.tokens.max()) < 280
    with pytest.raises(DataError, match="it is not of data translations"):
        second.load_state({"languages": ["de"]})


def test_the_description_has_pairs_languages_placeholders_and_tokens(path):
    described = prepared(path, max_chars=48).describe()
    assert described["pairs"].startswith(f"{path}: train ") and "split by" in described["pairs"]
    assert "longer than data.max_chars=48" in described["skipped"]
    assert described["languages"].startswith("3: de, th, el (each ")
    assert "%(name)s" in described["placeholders"]
    assert "3 language tags; a target has" in described["tokens"]
