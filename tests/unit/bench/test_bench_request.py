"""What may be asked for together."""

from __future__ import annotations

from typing import Any

import pytest

from moekit.bench.request import WHAT, Request
from moekit.errors import MoekitError


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        ("step", {}, "step of what"),
        ("step", {"names": ("x",), "growth": "experts"}, "--growth is an option of layer and router and dispatch"),
        ("step", {"names": ("x",), "shapes": ("8,4,4,2,1",)}, "--shape is an option of"),
        ("step", {"names": ("x",), "dtype": "float64"}, "float32, or in bfloat16"),
        ("router", {"dispatchers": ("loop",)}, "--dispatchers is an option of layer and dispatch, not of router"),
        ("dispatch", {"against": ("transformers",)}, "--against is an option of layer and step, not of dispatch"),
        ("layer", {"routers": ("topk",)}, "--routers is an option of router, not of layer"),
        ("layer", {"rounds": 0}, "expected --rounds >= 1"),
        ("layer", {"warmup": 0}, "expected --rounds >= 1 and --warmup >= 1"),
        ("layer", {"threads": -1}, "expected --threads from 0"),
        ("layer", {"threads": 10**11}, "expected --threads from 0"),
        ("layer", {"tokens": 0}, "--tokens >= 1"),
    ],
)
def test_what_does_not_go_together(what: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MoekitError, match=said):
        Request(what=what, **options)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(MoekitError) as error:
        Request(what="step", growth="experts", rounds=0)
    assert len(str(error.value).splitlines()) == 3


def test_what_goes_together() -> None:
    for what in WHAT:
        assert Request(what=what, names=("x",), memory=True, json=True).what == what
    assert Request(what="layer", growth="tokens", against=("transformers",), explain=True, tokens=1).rounds == 9
