"""Powers of the decay rates."""

from decimal import Context, Decimal, localcontext


def integer_power(base: float, n: int) -> float:
    """base^n for 0 <= base <= 1, to 50 digits and then rounded once.

    The C library's pow() differs in the last bit between processors. A power below e^-50, which 1 - base^n does not
    see, is given as 0.
    """
    if n * (1.0 - base) > 50.0:
        return 0.0
    with localcontext(Context(prec=50)):
        return float(Decimal(base) ** n)
