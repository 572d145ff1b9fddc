"""How rotated vectors are packed, as kernels see it."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """Indices of a scalar quantiser, the first of a vector in the lowest bits of its first byte.

    Attributes:
        bits: of an index, 2 or 4.
        coefficients: of the levels (``level_polynomial``).
    """

    bits: int
    coefficients: tuple[float, ...]

    @property
    def unit(self) -> float:
        """What kernels leave out of the levels, so that the linear term has no factor."""
        return self.coefficients[0]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The other coefficients over the first: ``level / unit = u + u^3 (ratios[0] + ratios[1] u^2 + ...)``.

        Evaluated so in float16, the error of a level is that of its own rounding.
        """
        return tuple(each / self.unit for each in self.coefficients[1:])

    @property
    def planes(self) -> int:
        """Indices in a byte."""
        return 8 // self.bits
