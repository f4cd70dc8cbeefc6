import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.registry import build
from moekit_data.bytes import Bytes
from moekit_data.corpus import Document, Domain, Filler, hash_fraction, shuffled, to_utf8, truncate
from moekit_data.text import tokenise

examples = settings(max_examples=80, deadline=None)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", b"plain"),
        (b"\xef\xbb\xbfmarked", b"marked"),
        ("caf\xe9!".encode(), "caf\xe9!".encode()),
        (b"caf\xe9!", None),
        (b"bin\0ary", None),
        (b"", b""),
    ],
)
def test_file_contents_become_utf8_and_those_of_binary_files_or_other_encodings_none(raw, text):
    assert to_utf8(raw) == text


@examples
@given(st.text(max_size=20), st.integers(0, 60))
def test_truncating_keeps_whole_characters_and_as_many_as_fit(text, limit):
    kept = truncate(text.encode(), limit).decode()
    assert text.startswith(kept)
    assert len(kept.encode()) <= limit
    assert kept == text or len((kept + text[len(kept)]).encode()) > limit


def test_hash_fractions_are_uniform_and_the_same_on_every_machine():
    assert hash_fraction("stdlib/ast.py") == pytest.approx(0.2088705, abs=1e-7)
    assert hash_fraction("stdlib/ast.py") != hash_fraction("stdlib/ast.py", "order")
    share = sum(hash_fraction(f"file{n}") < 0.1 for n in range(5000)) / 5000
    assert share == pytest.approx(0.1, abs=0.02)


@examples
@given(st.sets(st.text(max_size=8)))
def test_shuffled_does_not_depend_on_the_order_given(keys):
    assert shuffled(sorted(keys)) == shuffled(sorted(keys, reverse=True))
    assert set(shuffled(keys)) == keys


documents = st.lists(st.text("abcé", max_size=40), max_size=30).map(
    lambda texts: [Document(f"doc{n}", t.encode()) for n, t in enumerate(texts)]
)


@examples
@given(documents, st.integers(10, 400), st.floats(0.1, 0.6))
def test_filling_splits_by_key_and_stays_within_its_size(given_documents, limit, share):
    domain = Filler(limit, share).fill("d", given_documents)
    assert sum(map(len, domain.validation)) <= round(limit * share)
    assert sum(map(len, domain.train)) <= limit - round(limit * share)
    held_out = [d.text for d in given_documents if hash_fraction(d.key) < share]
    kept = [d.text for d in given_documents if hash_fraction(d.key) >= share]
    for part, pool in ((domain.validation, held_out), (domain.train, kept)):
        assert all(any(whole.startswith(text) for whole in pool) for text in part)
        assert all(text in pool for text in part[:-1])  # only the last may be truncated
    assert len(set(domain.train + domain.validation)) >= len(domain.train + domain.validation) - 2


def test_full_domains_have_exactly_equal_bytes():
    filler = Filler(1000, 0.2)
    sizes = []
    for name, size in (("small", 17), ("large", 190)):
        texts = [Document(f"{name}{n}", (f"{name} {n} ".encode() * size)[:size]) for n in range(200)]
        domain = filler.fill(name, texts)
        sizes.append((sum(map(len, domain.train)), sum(map(len, domain.validation))))
    assert sizes == [(800, 200), (800, 200)]


def test_exact_duplicates_are_taken_once_across_domains():
    filler = Filler(10_000, 0.5)
    first = filler.fill("first", [Document("a", b"same"), Document("b", b"same"), Document("c", b"other")])
    second = filler.fill("second", [Document("d", b"same"), Document("e", b"new")])
    assert sorted(first.train + first.validation) == [b"other", b"same"]
    assert second.train + second.validation == [b"new"]
    assert first.notes == second.notes == ["1 exact duplicate skipped"]


def test_reading_stops_when_both_splits_are_full():
    read = []

    def documents():
        for n in range(1000):
            read.append(n)
            yield Document(f"doc{n}", b"%04d" % n)

    Filler(40, 0.5).fill("d", documents())
    assert len(read) < 40


def test_blank_documents_are_skipped():
    assert Filler(100, 0.5).fill("d", [Document("a", b" \n\t"), Document("b", b"")]) == Domain("d")


def test_a_domain_describes_both_splits_and_its_notes():
    domain = Domain("d", [b"x" * 900_000], [b"y" * 100_000], ["3 exact duplicates skipped"])
    (found,) = tokenise([domain], {}, build(Bytes())).domains
    assert found.describe() == ("train 0.90 MB in 1 text, validation 0.10 MB in 1 text; 3 exact duplicates skipped")
