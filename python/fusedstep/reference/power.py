"""Powers of the decay rates."""

from decimal import Decimal, localcontext


def integer_power(base: float, n: int) -> float:
    """base^n for 0 <= base <= 1, to 50 digits and then rounded once.

    The C library's pow() differs in the last bit between processors.
    """
    with localcontext() as context:
        context.prec = 50
        context.Emin = -999999999
        return float(Decimal(base) ** n)
