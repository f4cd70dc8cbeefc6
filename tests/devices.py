"""The devices of a test: the CPU in every suite, a card with ``-m gpu``.

``MOEKIT_TEST_DEVICE=cpu`` rehearses the tests of a card on the CPU.
"""

from __future__ import annotations

import os

import pytest

GPU = pytest.param(os.environ.get("MOEKIT_TEST_DEVICE", "cuda"), id="gpu", marks=pytest.mark.gpu)
EACH = [pytest.param("cpu", id="cpu"), GPU]
on_a_card = pytest.mark.parametrize("card", [GPU])
on_each_device = pytest.mark.usefixtures("device")
"""New tensors and modules of the test are on the device: the fixture ``device`` of conftest.py."""
