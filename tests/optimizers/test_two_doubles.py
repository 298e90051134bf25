"""The reference's products without error, against exact fractions, up to the ends of the doubles."""

from fractions import Fraction

import numpy as np
import pytest

from fusedstep.reference.power import real_power
from fusedstep.reference.two_doubles import two_product


@pytest.mark.parametrize(("low", "high"), [(-30, 30), (480, 511), (900, 1023), (-500, -400), (-1000, -900)])
def test_error_of_a_product(low, high, rng):
    a = np.ldexp(rng.uniform(1, 2, 300), rng.integers(low, high, 300)) * rng.choice([-1, 1], 300)
    b = np.ldexp(rng.uniform(1, 2, 300), rng.integers(-40, 0, 300) if high > 600 else rng.integers(low, high, 300))
    if high < -800:
        b = np.ldexp(rng.uniform(1, 2, 300), rng.integers(-160, 900, 300))
    product, error = two_product(a, b)
    for x, y, p, e in zip(a, b, product, error, strict=True):
        assert p == x * y
        if np.isfinite(p):
            exact = Fraction(float(x)) * Fraction(float(y)) - Fraction(float(p))
            assert abs(Fraction(float(e)) - exact) <= Fraction(2) ** -1074


def test_exponents_of_one():
    """As the C++ gives them: the number itself, however large or small."""
    for base in (1e306, 1.7e308, 1e-320):
        assert real_power(base, 1.0) == base
