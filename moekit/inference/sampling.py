"""The limits of sampling, for the command line and for Python. Torch-free, so that mistakes are reported quickly."""

from __future__ import annotations

from moekit.errors import MoekitError


def check_sampling(
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    context: int | None = None,
    sign: str = "",
) -> None:
    """Rejects options of generation that are out of range.

    Args:
        prompt, tokens, temperature, top_p, seed, context: the options.
        sign: written before their names in messages: ``--`` on the command line.

    Raises:
        MoekitError: an option is out of range, or the prompt is empty or not UTF-8.
    """
    if tokens < 0 or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        limits = f"{sign}tokens >= 0, a finite {sign}temperature >= 0 and 0 < {sign}top-p <= 1"
        raise MoekitError(f"expected {limits}")
    if not 0 <= seed < 2**63:
        raise MoekitError(f"{sign}seed {seed} is out of range\n  expected 0 <= {sign}seed < 2**63")
    if context is not None and context < 0:
        raise MoekitError(f"{sign}context {context} is out of range\n  expected {sign}context >= 0; 0: all tokens")
    if not prompt:
        raise MoekitError("the prompt is empty: give at least one character")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise MoekitError(f"the prompt {prompt!a} has bytes that are not UTF-8")
