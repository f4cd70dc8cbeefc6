"""Files that cannot be read, or hold what a spec may not: the whole report of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from moekit.errors import SpecError
from moekit.spec import validate

CASES: dict[str, tuple[str | None, str]] = {
    "missing_file": (
        None,
        r"""
cannot read missing_file.yaml: No such file or directory
  expected a YAML file
""",
    ),
    "empty": (
        "# nothing\n",
        r"""
an empty file
  in empty.yaml
  expected a mapping of options: 'model:', 'data:', ...
""",
    ),
    "a_list": (
        "- model\n",
        r"""
the file holds a list
  in a_list.yaml
  expected a mapping of options: 'model:', 'data:', ...
""",
    ),
    "just_text": (
        "hello\n",
        r"""
the file holds 'hello'
  in just_text.yaml
  expected a mapping of options: 'model:', 'data:', ...
""",
    ),
    "syntax": (
        "model:\n  use: tower\n  width: [1, 2\ndata: lines\n",
        r"""
not valid YAML: while parsing a flow sequence, did not find expected ',' or ']'
  in syntax.yaml, line 4
""",
    ),
    "tab": (
        "model:\n\tuse: tower\n",
        r"""
not valid YAML: a tab, where YAML is indented by spaces
  in tab.yaml, line 2
""",
    ),
    "two_documents": (
        "model: {use: tower, width: 1}\n---\nmodel: {use: tower, width: 1}\n",
        r"""
not valid YAML: expected a single document in the stream, but found another document
  in two_documents.yaml, line 2
""",
    ),
    "control_character": (
        "model: \x01\n",
        r"""
not valid YAML: unacceptable character #x0001: control characters are not allowed in "<unicode string>", position 7
  in control_character.yaml
""",
    ),
    "twice": (
        "model: {use: tower, width: 1}\ndata: lines\nmodel: {use: tower, width: 2}\n",
        r"""
key 'model' stands twice, first in line 1
  at model  in twice.yaml, line 3
""",
    ),
    "key_number": (
        "model:\n  use: tower\n  width: 1\n  2: 3\n",
        r"""
key 2 is not text
  at model  in key_number.yaml, line 4
  expected a name, in quotes if need be
""",
    ),
    "key_list": (
        "model: {use: tower, [a]: 1}\n",
        r"""
a key is not text
  at model  in key_list.yaml, line 1
  expected a name, in quotes if need be
""",
    ),
    "merge_key": (
        "model: &m {use: tower, width: 1}\ndata:\n  <<: *m\n",
        r"""
'<<' is not read
  at data  in merge_key.yaml, line 3
  expected 'extends' to inherit a file
""",
    ),
    "tag": (
        "model: !!python/object:os.system {}\n",
        r"""
tag '!!python/object:os.system' is not read
  at model  in tag.yaml, line 1
  expected plain values
""",
    ),
    "tag_scalar": (
        "model: {use: tower, width: !mine 3}\n",
        r"""
tag '!mine' is not read
  at model.width  in tag_scalar.yaml, line 1
  expected plain values
""",
    ),
    "tag_list": (
        "model: {use: tower, width: !!set [3]}\n",
        r"""
tag '!!set' is not read
  at model.width  in tag_list.yaml, line 1
  expected plain values
""",
    ),
    "bad_int": (
        "model: {use: tower, width: !!int x}\n",
        r"""
'x' is not a YAML int
  at model.width  in bad_int.yaml, line 1
""",
    ),
    "recursive": (
        "model: &m {use: tower, moe: *m}\n",
        r"""
nested too deeply, or an alias that holds itself
  in recursive.yaml
""",
    ),
    "schema": (
        "schema: 2\nnew_thing: 3\n",
        r"""
written in spec format 2; this moekit reads format 1
  at schema  in schema.yaml, line 1
""",
    ),
    "extends_unknown": (
        "extends: smal\n",
        r"""
unknown recipe 'smal' (installed: more/tiny, small)
  at extends  in extends_unknown.yaml, line 1
  did you mean 'small'?
  list them: moekit ls recipes
  note: plugin 'broken' failed to load (ImportError: no such luck); see: moekit plugins
""",
    ),
    "extends_missing_file": (
        "extends: [small, base/gone.yaml]\n",
        r"""
cannot read base/gone.yaml: No such file or directory
  at extends[1]  in extends_missing_file.yaml, line 1
  expected a YAML file
""",
    ),
    "extends_number": (
        "extends: 3\n",
        r"""
extends: 3 names nothing
  at extends  in extends_number.yaml, line 1
  expected a recipe, a file, or a list of them
""",
    ),
    "extends_a_directory": (
        "extends: folder.yaml\n",
        r"""
cannot read folder.yaml: Is a directory
  at extends  in extends_a_directory.yaml, line 1
  expected a YAML file
""",
    ),
    "me": (
        "extends: me.yaml\n",
        r"""
extends goes in a circle: me.yaml -> me.yaml
  at extends  in me.yaml, line 1
""",
    ),
    "line_numbers": (
        "extends: small\nmodel:\n  moe:\n    router:\n      use: pick\n      top_k: 99\n    shared: wide\n  width: x\n",
        r"""
3 problems

top_k: 99 is out of range
  at model.moe.router.top_k  in line_numbers.yaml, line 6
  expected an integer >= 1 and <= 8

expert 'wide' needs 'hidden'
  at model.moe.shared.hidden  in line_numbers.yaml, line 7
  expected hidden: an integer >= 1 (width of the hidden layer)
  list them: moekit show wide

width: 'x' is not an integer
  at model.width  in line_numbers.yaml, line 8
  expected an integer >= 1
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message(name: str, write: Callable[[str, str], str]) -> None:
    text, message = CASES[name]
    Path("folder.yaml").mkdir()
    if text is not None:
        write(f"{name}.yaml", text)
    with pytest.raises(SpecError) as caught:
        validate(f"{name}.yaml")
    assert str(caught.value) == message.strip("\n")
