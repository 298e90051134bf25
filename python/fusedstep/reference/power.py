"""Powers, exponentials and logarithms of a few scalars of a step, to 50 digits and then rounded once.

The C library's differ in the last bit between processors.
"""

from decimal import Context, Decimal, localcontext
from math import isinf


def integer_power(base: float, n: int) -> float:
    """base^n for 0 <= base <= 1.

    A power below e^-50, which 1 - base^n does not see, is given as 0.
    """
    if n * (1.0 - base) > 50.0:
        return 0.0
    with localcontext(Context(prec=50)):
        return float(Decimal(base) ** n)


def real_power(base: float, exponent: float) -> float:
    """base^exponent for base >= 0; results below e^-700 are given as 0, above e^700 as infinity."""
    if exponent == 0.0 or base == 1.0:
        return 1.0
    if base == 0.0:
        return 0.0 if exponent > 0.0 else float("inf")
    if exponent == 1.0:
        return base
    with localcontext(Context(prec=50)):
        if isinf(base) or isinf(exponent):
            return float("inf") if (base > 1.0) == (exponent > 0.0) else 0.0
        y = Decimal(base).ln() * Decimal(exponent)
        if abs(y) > 700:
            return 0.0 if y < 0 else float("inf")
        return float(y.exp())


def real_exp(x: float) -> float:
    """e^x."""
    with localcontext(Context(prec=50)):
        return float(Decimal(x).exp())


def real_log(x: float) -> float:
    """Ln x."""
    with localcontext(Context(prec=50)):
        return float(Decimal(x).ln())
