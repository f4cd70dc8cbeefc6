"""Finds the text of each domain on this machine.

Each function yields documents in a fixed order and reads a file only when its document is requested, so that a caller
with enough text stops the reading. A missing source yields nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moekit.files import open_regular
from moekit_data.corpus import MAX_FILE, Document, is_new, shuffled, to_utf8, truncate

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
_CPP_SUFFIXES = (".h", ".hpp", ".hh", ".cuh", ".inl")
_LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


def python() -> Iterator[Document]:
    """Python's standard library without its tests; keys start with ``stdlib/``."""
    yield from _read(_files("stdlib", _stdlib(), (".py",)))


def torch_python() -> Iterator[Document]:
    """torch's own Python sources without tests; keys start with ``torch/``."""
    yield from _read(_files("torch", _package("torch"), (".py",)))


def cpp() -> Iterator[Document]:
    """The C++ headers that torch brings; keys start with ``include/``."""
    torch = _package("torch")
    yield from _read(_files("include", torch / "include" if torch else None, _CPP_SUFFIXES))


def prose() -> Iterator[Document]:
    """English: package descriptions, licences and help topics, then docstrings of the library and of torch.

    Repeated paragraphs are skipped: licences and descriptions repeat each other, and a copy in the other split would
    leak. A docstring has the key of its file, so that both are in the same split; files come in the opposite order to
    ``python``'s, so that few texts are in both domains.
    """
    seen: set[bytes] = set()
    packages = _distributions()
    texts = (*_descriptions(packages), *_licences(packages), *_topics())
    text_of = {document.key: document.text for document in texts}
    for key in shuffled(text_of):
        yield Document(key, _new_paragraphs(text_of[key], seen))
    sources = _files("stdlib", _stdlib(), (".py",)) | _files("torch", _package("torch"), (".py",))
    for document in _read(sources, backwards=True):
        yield Document(document.key, _new_paragraphs(_docstrings(document.text), seen))


def stubs() -> Iterator[Document]:
    """Stubs of types that installed packages bring; keys start with ``stubs/``."""
    yield from _read(_files("stubs", _site(), (".pyi",)))


def fonts() -> Iterator[Document]:
    """The metrics of fonts that matplotlib brings, a line for each glyph; keys start with ``fonts/``."""
    yield from _read(_files("fonts", _package("matplotlib"), (".afm",)))


def code_pages() -> Iterator[Document]:
    """The tables of Python's encodings; keys start with ``encodings/``.

    They are part of ``python`` too: a recipe that names both should name this one first, since a text counts once.
    """
    stdlib = _stdlib()
    yield from _read(_files("encodings", stdlib / "encodings" if stdlib else None, (".py",)))


def file_lists() -> Iterator[Document]:
    """What installed packages list of their files: names, checksums, sizes; keys start with ``files/``."""
    texts = {name: _text(distribution, "RECORD") for name, distribution in _distributions().items()}
    for name in shuffled(texts):
        if texts[name]:
            yield Document(f"files/{name}", truncate(texts[name].encode(), MAX_FILE))


def characters() -> Iterator[Document]:
    """Unicode's characters, 64 in a text: number, character, category and name; keys start with ``characters/``.

    Those named by their number, such as Chinese ones, are omitted.
    """
    texts: dict[str, list[str]] = {}
    for number in range(0x20, 0x20000):
        name = unicodedata.name(chr(number), "")
        if name and not name.endswith(f"-{number:X}"):
            line = f"U+{number:04X} {chr(number)} {unicodedata.category(chr(number))} {name}\n"
            texts.setdefault(f"characters/{number // 64:04x}", []).append(line)
    for key in shuffled(texts):
        yield Document(key, "".join(texts[key]).encode())


SOURCES: dict[str, Callable[[], Iterator[Document]]] = {
    "python": python,
    "torch_python": torch_python,
    "cpp": cpp,
    "prose": prose,
    "stubs": stubs,
    "fonts": fonts,
    "code_pages": code_pages,
    "file_lists": file_lists,
    "characters": characters,
}
"""The documents of each domain, by its name in the spec."""


def _stdlib() -> Path | None:
    path = sysconfig.get_path("stdlib")
    return Path(path) if path else None


def _site() -> Path | None:
    torch = _package("torch")  # where packages are installed, whatever kind of environment this is
    return torch.parent if torch else None


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _files(label: str, root: Path | None, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Paths of files below ``root`` by key: ``label`` and the relative name."""
    found: dict[str, str] = {}
    for folder, subfolders, names in os.walk(root) if root else ():
        subfolders[:] = [s for s in subfolders if s not in _NOT_LIBRARY]
        inside = folder[len(str(root)) :].replace(os.sep, "/")
        found |= {f"{label}{inside}/{name}": os.path.join(folder, name) for name in names if name.endswith(suffixes)}
    return found


def _read(paths: dict[str, str], *, backwards: bool = False) -> Iterator[Document]:
    keys = shuffled(paths)
    for key in reversed(keys) if backwards else keys:
        document = _document(key, paths[key])
        if document is not None:
            yield document


def _document(key: str, path: str | os.PathLike[str]) -> Document | None:
    """The file's text; None when it cannot be read, is binary, or is not UTF-8: replacing bytes would make up text."""
    try:
        with open_regular(path) as file:
            text = to_utf8(truncate(file.read(MAX_FILE + 1), MAX_FILE))
    except OSError:
        return None
    return None if text is None else Document(key, text)


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """Installed packages by name, in lower case: the first on the path hides others of its name.

    Those whose description is not UTF-8 are skipped.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        if _text(distribution, "METADATA"):
            about = distribution.metadata  # parsed each time that it is read
            name = about["Name"].lower() if "Name" in about else ""
            if name:
                found.setdefault(name, distribution)
    return found


def _text(distribution: importlib.metadata.Distribution, file: str) -> str:
    """A file about a package; empty if it is missing or not UTF-8."""
    try:
        return distribution.read_text(file) or ""
    except UnicodeDecodeError:
        return ""


def _descriptions(packages: Mapping[str, importlib.metadata.Distribution]) -> Iterator[Document]:
    for package, distribution in packages.items():
        text = to_utf8(_text(distribution, "METADATA").partition("\n\n")[2].encode())
        if text:
            yield Document(f"description/{package}", truncate(text, MAX_FILE))


def _licences(packages: Mapping[str, importlib.metadata.Distribution]) -> Iterator[Document]:
    for package, distribution in packages.items():
        for line in _text(distribution, "RECORD").splitlines():
            name = line.partition(",")[0]
            folder, _, inside = name.partition("/")
            if folder.endswith(".dist-info") and inside.rpartition("/")[2].upper().startswith(_LICENCE_NAMES):
                document = _document(f"licence/{package}/{inside}", str(distribution.locate_file(name)))
                if document is not None:
                    yield document


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return
    for name, text in topics.items():
        yield Document(f"topic/{name}", str(text).encode("utf-8", errors="replace").replace(b"\0", b""))


def _docstrings(source: bytes) -> bytes:
    """Every docstring of a Python file, blank lines between: triple-quoted text that opens a block or the file.

    Found by their quotes, not by a parser, which would take seconds for all files. Quotes inside comments or strings
    may lose a docstring or add a few lines of code, which is harmless here.
    """
    parts = source.split(b'"""')
    found: list[str] = []
    for index in range(1, len(parts) - 1, 2):
        before = parts[index - 1].removesuffix(b"r").rstrip()
        if before.endswith(b":") or (index == 1 and all(line.startswith(b"#") for line in before.splitlines() if line)):
            found.append(inspect.cleandoc(parts[index].decode("utf-8")))
    return "\n\n".join(found).encode()


def _new_paragraphs(text: bytes, seen: set[bytes]) -> bytes:
    """The paragraphs that are new, whatever their white space; adds them to ``seen``."""
    return b"\n\n".join(p for p in re.split(rb"\n\s*\n", text) if is_new(b" ".join(p.split()), seen))
