import hashlib
from importlib.resources import files

import pytest
import torch

from moekit.errors import DataError, MoekitError
from moekit.registry import build
from moekit_data.vowels import Vowels, table


def prepared(**options):
    data = build(Vowels(**options))
    data.prepare()
    return data


def one_batch(data):
    return data.train_batch(torch.Generator())


def test_the_table_is_the_one_its_source_note_describes():
    folder = files("moekit_data.vowels")
    digest = hashlib.sha256((folder / "peterson_barney.csv").read_bytes()).hexdigest()
    assert digest == "b72d662c19d6ec977c9b3bbe166a79b611e3d394dc8a785aa4694d545bdd863f"
    assert digest in (folder / "SOURCE.md").read_text(encoding="utf-8")


def test_defaults_are_the_cases_of_1991():
    data = prepared()
    batch = one_batch(data)
    (test,) = data.validation_batches()
    assert (batch.inputs.shape, batch.targets.shape) == ((400, 2), (400, 1))
    assert (test.inputs.shape, test.targets.shape) == ((200, 2), (200, 1))
    assert batch.inputs.dtype == batch.targets.dtype == torch.float32
    torch.testing.assert_close(batch.inputs[0], torch.tensor([0.240, 2.280]))  # speaker 1, iy: 240 and 2280 Hz
    assert batch.num_bytes is None
    assert data.describe()["train"] == "400 cases, speakers 1 to 50"
    assert data.describe()["test"] == "200 cases, speakers 51 to 75"


@pytest.mark.parametrize(
    ("coding", "ones"), [("turns", {"iy", "ah"}), ("ends", {"iy", "aa"})], ids=["turns_1010", "ends_1001"]
)
def test_targets_are_coded_along_mean_f1(coding, ones):
    data = prepared(coding=coding)
    for cases in (data.train, data.test):
        assert {v for v, d in zip(cases.vowels, cases.d_TO[:, 0].tolist(), strict=True) if d == 1} == ones
        assert set(cases.d_TO.flatten().tolist()) == {0.0, 1.0}


def test_the_order_in_which_vowels_are_named_does_not_matter():
    first, second = prepared(), prepared(vowels=["ah", "aa", "ih", "iy"])
    assert torch.equal(first.train.d_TO, second.train.d_TO)
    assert torch.equal(first.train.x_TD, second.train.x_TD)


def test_training_and_test_speakers_differ():
    data = prepared(train_speakers=3, test_speakers=2, vowels=["er", "uw", "ae"])
    assert (len(data.train.vowels), len(data.test.vowels)) == (3 * 3 * 2, 2 * 3 * 2)


def test_every_batch_holds_all_cases_and_leaves_the_generator_alone():
    data, generator = prepared(), torch.Generator().manual_seed(3)
    before = generator.get_state()
    first, second = data.train_batch(generator), data.train_batch(generator)
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vowels": ["iy", "xx"]}, r"has xx; the choices are iy, ih, eh, ae, ah, aa, ao, uh, uw, er"),
        ({"vowels": ["iy"]}, "must be two or more different vowels"),
        ({"vowels": ["iy", "iy"]}, "must be two or more different vowels"),
        ({"train_speakers": 60, "test_speakers": 17}, "add up to more than the 76 speakers there are"),
    ],
)
def test_the_vowels_spec_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Vowels(**options)


def test_nothing_is_read_before_prepare():
    with pytest.raises(MoekitError, match=r"has read nothing yet: call prepare\(\) first"):
        one_batch(build(Vowels()))


def test_a_damaged_table_is_named(tmp_path, monkeypatch):
    (tmp_path / "peterson_barney.csv").write_text("speaker,vowel\n1,iy\n")
    monkeypatch.setattr(table, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"cannot read the formant table .*peterson_barney\.csv: 'f1'"):
        prepared()


def test_vowels_hold_no_text_no_state_and_no_domains():
    data = prepared()
    assert data.tokenizer is None and data.state() == {}
    data.load_state({})
    assert data.domain_names() == ()
