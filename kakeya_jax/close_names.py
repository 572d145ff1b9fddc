"""What somebody may have meant by a name that does not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``" did you mean 'klt-2'?"`` for the name that is closest; empty if none is close.

    Closest is the shortest that holds what was written, of three letters or more; else the one that differs least.
    """
    known = list(names)
    found = sorted((each for each in known if len(name) > 2 and name.lower() in each.lower()), key=len)
    found = found or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" did you mean {found[0]!r}?" if found else ""
