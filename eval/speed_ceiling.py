"""How much faster a decode step can become if only attention gets cheaper.

With ``p`` the share of a step's time that attention takes, ``f`` what is left of that share, and ``h`` what choosing
costs as a share of the whole step, the step is ``1 / ((1 - p) + p f + h)`` times as fast (Amdahl's law with overhead).
"""


def speedup(p: float, f: float, h: float = 0.0) -> float:
    """Times as fast.

    Args:
        p: share of the step's time that attention takes, 0 to 1.
        f: what is left of attention's time, 0 to 1; 0 for the ceiling.
        h: overhead as a share of the step's time, at least 0.

    Raises:
        ValueError: a share is out of range, or nothing is left of the step.
    """
    for name, value in (("p", p), ("f", f)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be a share between 0 and 1")
    if h < 0:
        raise ValueError(f"h={h} must be at least 0")
    left = (1 - p) + p * f + h
    if left <= 0:
        raise ValueError("nothing is left of the step: p=1, f=0 and h=0 have no finite speed-up")
    return 1 / left
