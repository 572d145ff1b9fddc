"""What more states of a trellis buy: squared error of a unit Gaussian at 1 to 6 bits, and the time of the encoder.

python scripts/explore_trellis.py        prints a table in Markdown; about two minutes on two cores

Levels are fitted to each code anew. Errors are shares of that of the Lloyd-Max quantiser of as many bits. Times are of
one pass over 524,288 draws in runs of 128, the median of nine: at 2 bits, where most of it is the path, and at 6.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from kakeya_jax.klt_layout import gaussian_error
from kakeya_jax.lloyd_max import gaussian_levels
from kakeya_jax.trellis import CODES, TrellisCode
from kakeya_jax.trellis_levels import RUN, fit_code_books, nearest_path

WIDTHS = (1, 2, 3, 4, 5, 6)
RUNS = 4096


def main() -> None:
    """Fits, times and prints."""
    best = [gaussian_error(gaussian_levels(width).astype(np.float64)) for width in WIDTHS]
    print("| states | " + " | ".join(f"{width} bits" for width in WIDTHS) + " | ns a value, 2 bits | 6 bits |")
    print("|--:|" + "--:|" * (len(WIDTHS) + 2))
    for states, code in CODES.items():
        books = list(fit_code_books(code, runs=RUNS, widest=WIDTHS[-1]))
        shares = [f"{error / each:.3f}" for (_, error), each in zip(books, best, strict=True)]
        times = [f"{nanoseconds(code, books[width - 1][0]):.0f}" for width in (2, WIDTHS[-1])]
        print(f"| {states} | " + " | ".join([*shares, *times]) + " |", flush=True)


def nanoseconds(code: TrellisCode, levels: np.ndarray) -> float:
    """Of the encoder, for each value."""
    draws, table = jax.random.normal(jax.random.key(2), (RUN, RUNS)), jnp.asarray(levels, jnp.float32)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(nearest_path(draws, table, code))
        seconds.append(time.perf_counter() - start)
    return 1e9 * statistics.median(seconds[1:]) / draws.size


if __name__ == "__main__":
    main()
