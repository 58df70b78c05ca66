"""What a pass says of itself."""

from dataclasses import dataclass

__all__ = ["Outcome"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a pass acted."""

    sites: tuple[str, ...]
    """Names of the nodes rewritten, as they were before."""
    note: str = ""
    """What it passed over and why; never empty where it found no site."""
    max_sides: tuple[int | None, int | None] = (None, None)
    """Largest input height and width, in pixels, for which the rewritten graph is still exact; None where any is."""
