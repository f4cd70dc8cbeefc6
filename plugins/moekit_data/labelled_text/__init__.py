"""Classifying a window of text by its domain: a task to fine-tune on, as text to text.

Source: Raffel et al. 2020, T5 (arXiv 1910.10683, section 2.4) for the form; ST-MoE 2022 (section 4) fine-tunes on
tasks of this form.
"""

from __future__ import annotations

from moekit_data.specs import DerivedSpec


class LabelledText(DerivedSpec):
    """Options of labelled text. For a model that was pre-trained by span corruption, keep ``text`` and ``vocab``."""
