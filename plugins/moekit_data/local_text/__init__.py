"""Text by domain, from files that every installation has, without a download."""

from collections.abc import Iterable

from moekit.spec.fields import option
from moekit_data.specs import DomainTextSpec

DOMAINS = ("python", "torch_python", "cpp", "prose", "stubs", "fonts", "code_pages", "file_lists", "characters")


class LocalText(DomainTextSpec):
    """Options of local text.

    Domains: Python's library, torch's Python, torch's C++ headers, English prose, stubs of types, metrics of fonts,
    tables of code pages, lists of files with checksums, and names of Unicode's characters.
    """

    domains: list[str] = option(
        ["python", "cpp", "prose"], f"kinds of text, of: {', '.join(DOMAINS)}; equally likely in a batch"
    )
    megabytes: float = option(4.0, "text per domain, MB (10^6 bytes), both splits together", gt=0, le=50)

    def check(self) -> Iterable[str]:
        """Known domains, each once."""
        yield from super().check()
        unknown = [d for d in self.domains if d not in DOMAINS]
        if unknown:
            yield f"domains={self.domains!r} has {', '.join(unknown)}; the choices are {', '.join(DOMAINS)}"
        elif not self.domains or len(set(self.domains)) < len(self.domains):
            yield f"domains={self.domains!r} must name at least one domain, and each once"
