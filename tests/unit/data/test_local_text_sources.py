import importlib.metadata
import sysconfig
from itertools import islice
from pathlib import Path

import pytest

from moekit_data.local_text import DOMAINS, sources


def fake_package(root: Path, name: str, files: dict[str, str]) -> Path:
    for inside, text in files.items():
        path = root / name / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / name


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of a few files in place of Python's own."""
    root = fake_package(
        tmp_path,
        "lib",
        {
            "os.py": '"""Files.\n\nAnd folders.\n"""\nimport sys\n',
            "json/tool.py": 'def run(\n    x,\n):\n    r"""Runs the tool."""\n    y = """not a docstring"""\n',
            "test/test_os.py": "raise SystemExit",
            "site-packages/other.py": "x = 1",
            "notes.txt": "not Python",
        },
    )
    (root / "binary.py").write_bytes(b"x\0y")
    (root / "latin.py").write_bytes(b"# caf\xe9\n")
    (root / "gone.py").symlink_to(root / "nowhere.py")
    monkeypatch.setattr(sources, "_stdlib", lambda: root)
    monkeypatch.setattr(sources, "_package", lambda name: None)
    return root


def test_every_domain_of_the_spec_has_a_source():
    assert tuple(sources.SOURCES) == DOMAINS


def test_the_library_is_read_without_tests_packages_and_unreadable_files(library):
    assert sorted(d.key for d in sources.python()) == ["stdlib/json/tool.py", "stdlib/os.py"]


def test_docstrings_carry_the_key_of_their_file(library):
    found = {d.key: d.text for d in sources.prose() if d.key.startswith("stdlib/")}
    assert found == {"stdlib/os.py": b"Files.\n\nAnd folders.", "stdlib/json/tool.py": b"Runs the tool."}


def test_docstrings_come_in_the_opposite_order_of_files(library):
    files = [d.key for d in sources.python()]
    docstrings = [d.key for d in sources.prose() if d.key.startswith("stdlib/")]
    assert docstrings == files[::-1]


def test_docstrings_open_a_block_or_the_file():
    source = b'# a comment\n\n"""The file."""\nclass A:\n    """A class.\n\n    More.\n    """\n    x = """no"""\n'
    assert sources._docstrings(source) == b"The file.\n\nA class.\n\nMore."
    assert sources._docstrings(b'x = 1\n"""no"""\n') == b""
    assert sources._docstrings(b"") == sources._docstrings(b'"""never closed') == b""


def test_repeated_paragraphs_are_skipped():
    seen: set[bytes] = set()
    assert sources._new_paragraphs(b"One  two.\n\nThree.", seen) == b"One  two.\n\nThree."
    assert sources._new_paragraphs(b"Four.\n \nOne\ntwo.", seen) == b"Four."


def test_torchs_headers_and_python_files_are_found(tmp_path, monkeypatch):
    torch = fake_package(tmp_path, "torch", {"include/a/x.h": "int x;", "include/y.txt": "no", "z.py": "z = 1"})
    monkeypatch.setattr(sources, "_package", lambda name: torch)
    assert [d.key for d in sources.cpp()] == ["include/a/x.h"]
    assert [d.key for d in sources.torch_python()] == ["torch/z.py"]


def test_descriptions_and_licences_of_installed_packages(tmp_path, monkeypatch):
    fake_package(
        tmp_path,
        "thing-1.0.dist-info",
        {
            "METADATA": "Metadata-Version: 2.1\nName: Thing\nVersion: 1.0\n\nThis thing does much.\n",
            "licenses/LICENSE.txt": "Do what you like.",
            "RECORD": "thing-1.0.dist-info/METADATA,,\nthing-1.0.dist-info/licenses/LICENSE.txt,,\nthing/LICENSE,,\n",
        },
    )
    thing = importlib.metadata.PathDistribution(tmp_path / "thing-1.0.dist-info")
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter([thing, thing]))
    packages = sources._distributions()
    assert [(d.key, d.text) for d in sources._descriptions(packages)] == [
        ("description/thing", b"This thing does much.\n")
    ]
    assert [(d.key, d.text) for d in sources._licences(packages)] == [
        ("licence/thing/licenses/LICENSE.txt", b"Do what you like.")
    ]


def test_a_package_without_name_or_description_is_skipped(tmp_path, monkeypatch):
    fake_package(tmp_path, "a.dist-info", {"METADATA": "Version: 1\n\ntext"})
    fake_package(tmp_path, "b.dist-info", {"METADATA": "Name: b\n"})
    found = [importlib.metadata.PathDistribution(tmp_path / name) for name in ("a.dist-info", "b.dist-info")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    assert list(sources._descriptions(sources._distributions())) == []


def test_a_package_whose_metadata_is_not_utf8_is_skipped(tmp_path, monkeypatch):
    fake_package(tmp_path, "a.dist-info", {"METADATA": "Name: a\n\nabout a"})
    (tmp_path / "a.dist-info" / "RECORD").write_bytes(b"a.dist-info/LICENSE-\xe9,,\n")
    fake_package(tmp_path, "b.dist-info", {"LICENSE": "no", "RECORD": "b.dist-info/LICENSE,,\n"})
    (tmp_path / "b.dist-info" / "METADATA").write_bytes(b"Name: b\n\ncaf\xe9")
    found = [importlib.metadata.PathDistribution(tmp_path / name) for name in ("a.dist-info", "b.dist-info")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    packages = sources._distributions()
    assert [d.key for d in sources._descriptions(packages)] == ["description/a"]
    assert list(sources._licences(packages)) == []


def test_a_long_file_is_cut_between_characters_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE", 10)
    (tmp_path / "a.py").write_bytes("123456789é and more".encode())
    assert sources._document("a", tmp_path / "a.py") == sources.Document("a", b"123456789")


def test_missing_sources_yield_nothing(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: None)
    assert sources._package("no_such_package_here") is None
    assert list(sources.python()) == []
    monkeypatch.setattr(sources, "_package", lambda name: None)
    assert list(sources.cpp()) == list(sources.torch_python()) == []
    assert list(sources.stubs()) == list(sources.fonts()) == list(sources.code_pages()) == []


def test_stubs_fonts_code_pages_and_lists_of_files_are_found(tmp_path, monkeypatch):
    torch = fake_package(tmp_path / "site", "torch", {"a.pyi": "a: int", "a.py": "a = 1", "b.afm": "C 32"})
    fake_package(tmp_path / "library", "encodings", {"cp1.py": "table"})
    fake_package(tmp_path / "site", "c.dist-info", {"METADATA": "Name: C\n\nabout c", "RECORD": "c.py,sha256=1,2\n"})
    monkeypatch.setattr(sources, "_package", lambda name: torch)
    monkeypatch.setattr(sources, "_stdlib", lambda: tmp_path / "library")
    found = [importlib.metadata.PathDistribution(tmp_path / "site" / "c.dist-info")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    kinds = (sources.stubs, sources.fonts, sources.code_pages, sources.file_lists)
    assert [(d.key, d.text) for kind in kinds for d in kind()] == [
        ("stubs/torch/a.pyi", b"a: int"),
        ("fonts/b.afm", b"C 32"),
        ("encodings/cp1.py", b"table"),
        ("files/c", b"c.py,sha256=1,2\n"),
    ]


def test_characters_are_listed_by_number_without_those_named_by_it():
    texts = {d.key: d.text.decode() for d in sources.characters()}
    assert "U+0041 A Lu LATIN CAPITAL LETTER A\n" in texts["characters/0001"]
    assert "characters/0138" not in texts  # U+4E00 to U+4E3F: CJK UNIFIED IDEOGRAPH-4E00 and so on
    assert sum(map(len, texts.values())) > 1e6


@pytest.mark.parametrize("domain", DOMAINS)
def test_this_machine_has_text_of_every_domain(domain):
    documents = list(islice(sources.SOURCES[domain](), 20))
    assert len(documents) == 20
    assert all(b"\0" not in d.text for d in documents)
    assert [d.key for d in documents] == [d.key for d in islice(sources.SOURCES[domain](), 20)]
    for document in documents:
        document.text.decode("utf-8")
