"""The axes of a sweep: values between commas, and ranges of numbers."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

from moekit.errors import MoekitError

RANGE = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\.\.([-+]?[\d.]+(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Range:
    """An axis of numbers, ``low..high``, whole ones if both ends are.

    A range whose ends differ by a factor of ten or more is sampled on a logarithmic scale.
    """

    low: float
    high: float
    is_whole: bool

    @classmethod
    def of(cls, text: str) -> Range | None:
        """The range that a text spells; None if it spells another value.

        Raises:
            MoekitError: its ends are no numbers in ascending order.
        """
        match = RANGE.fullmatch(text)
        if match is None:
            return None
        try:
            low, high = (float(each) for each in match.groups())
        except ValueError:
            low = high = math.nan
        if not low < high:
            raise MoekitError(f"'{text}' is not a range\n  expected LOW..HIGH, two numbers in ascending order")
        return cls(low=low, high=high, is_whole=all(each.lstrip("+-").isdigit() for each in match.groups()))

    @property
    def is_logarithmic(self) -> bool:
        """Whether numbers are sampled on a logarithmic scale."""
        return self.low > 0 and self.high / self.low >= 10

    def text(self, value: float) -> str:
        """A number as the text of an override, to four digits, within the range."""
        if self.is_whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.4g}"), self.low), self.high))

    def draw(self, generator: random.Random) -> str:
        """A random number of the range."""
        if self.is_whole and not self.is_logarithmic:
            return str(generator.randint(int(self.low), int(self.high)))
        low, high = (math.log(x) if self.is_logarithmic else x for x in (self.low, self.high))
        value = generator.uniform(low, high)
        return self.text(math.exp(value) if self.is_logarithmic else value)


def split(value: str) -> list[str]:
    """The parts of a value between commas that are in no bracket, brace or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
