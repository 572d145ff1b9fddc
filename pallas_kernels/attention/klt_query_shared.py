"""Shared memory while ``klt_queries`` finds queries of pages, before tiles take it: where its parts begin, in bytes."""

STEPS = 128 // 16
"""Of the depth of a product."""

STEP_NBYTES = 512 + 64
"""Of a step's left operands; what is more than 512 keeps writers apart."""

TOGETHER = 2
"""Products of 16 rows at once, for fewer barriers."""

PRODUCT_NBYTES = STEPS * STEP_NBYTES
"""Of one's left operands,"""

ROWS_NBYTES = TOGETHER * PRODUCT_NBYTES
"""and of all; there is room for two, and they come first."""

SUMS_NBYTES = 4 * 32 * 8
"""Of two sums of each warp's lanes for eight rows: where left operands of the same turn were, once they are read."""

GROUP_NBYTES = 32 * 4 * 32
"""Of a group's operands of a map, pair after pair of words; before there are rows, four groups are in their place
(``klt_block_operands``),"""

WEIGHTS = 4 * GROUP_NBYTES
"""with the groups' weights,"""

MEAN_SIZE = WEIGHTS + 4 * 4
"""and the largest entry of the mean."""

TOPS = 2 * ROWS_NBYTES
"""The largest numbers of each row and warp, twice,"""

TOPS_NBYTES = TOGETHER * 4 * 4 * 16
"""for which each time takes so much."""

SIZES = TOPS + 2 * TOPS_NBYTES
"""Sizes of eight queries, and units of their coefficients."""

CURVES = SIZES + 2 * 4 * 8
"""What each warp needs for coefficients: the mean, and then, for each block of eight curves, two steps after the other,
what it is multiplied with and later what that comes to."""

MEAN_NBYTES = 4 * 128

PART_NBYTES = 2 * 512
"""Of two steps: four floats of a lane for cosines and as many for sines."""


def curves_nbytes(blocks: int) -> int:
    """Of a warp."""
    return MEAN_NBYTES + blocks * STEPS // 2 * PART_NBYTES


def written_rows(blocks: int) -> int:
    """Where numbers and coefficients of a turn's pages begin, on their way to where all pages have theirs."""
    return CURVES + 4 * curves_nbytes(blocks)


def shared_nbytes(blocks: int, turn_nbytes: int) -> int:
    """Of a program."""
    return written_rows(blocks) + turn_nbytes
