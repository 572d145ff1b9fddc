"""PTX on packed halves, two float16 in a register."""

import numpy as np


def polynomial(ratios: list[str], result: str) -> list[str]:
    """PTX for ``result = u + u^3 (ratios[0] + ratios[1] u^2 + ...)`` of packed halves; uses registers ``s`` and ``t``.

    Args:
        ratios: names of registers.
        result: name of the register to write.
    """
    if not ratios:
        return [f"mov.b32 {result}, u;"]
    return [
        "mul.rn.f16x2 s, u, u;",
        f"mov.b32 t, {ratios[-1]};",
        *(f"fma.rn.f16x2 t, t, s, {each};" for each in ratios[-2::-1]),
        "mul.rn.f16x2 s, s, u;",
        f"fma.rn.f16x2 {result}, s, t, u;",
    ]


def pair(value: float) -> str:
    """Two equal halves as one constant."""
    return f"{int(np.float16(value).view(np.uint16)) * 0x10001:#010x}"
