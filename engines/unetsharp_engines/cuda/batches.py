"""Any number of tiles as batches of few sizes, so that each size is captured once."""

__all__ = ["sizes_between", "split"]


def sizes_between(least: int, most: int) -> tuple[int, ...]:
    """Batch sizes that an engine for ``least`` to ``most`` tiles is captured for: powers of two, and the two ends."""
    powers = (1 << exponent for exponent in range(most.bit_length()))
    return tuple(sorted({least, most, *(size for size in powers if least < size < most)}))


def split(count: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """``count`` tiles as batches (size, tiles in it), sizes from ``sizes`` (ascending), tiles in order.

    Whole batches of the largest size first. A rest goes into one batch that it fills to three quarters or more, filled
    up with tiles whose results nobody reads; else a smaller batch is taken off it, and the rest is looked at again.
    """
    batches = [(sizes[-1], sizes[-1])] * (count // sizes[-1])
    rest = count % sizes[-1]
    while rest:
        above = next(size for size in sizes if size >= rest)
        below = max((size for size in sizes if size <= rest), default=above)
        size = above if 4 * rest >= 3 * above else below
        batches.append((size, min(size, rest)))
        rest -= min(size, rest)
    return batches
