r"""Moments of the signal in random networks of any width: Section 4 and Appendix B of the paper.

A layer is a gate, then a matrix: :math:`a^{k+1} = W^k D^{k-1} a^k`, from :math:`a^1 = z`. The entries of each
:math:`W^k` (width x width) are independent, with mean 0, variance :math:`\sigma^2` and kurtosis
:math:`\kappa = \mathbb E[w^4]/\sigma^4`. The share p of open gates is 1 in linear and 1/2 in ReLU networks.

All functions take integers, Fractions and sympy expressions, which give exact results, as well as floats and arrays
of floats, which broadcast, in float64.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np


def after_gate(z2: Any, z4: Any, *, p: Any) -> tuple[Any, Any]:
    r"""Return :math:`(\mathbb E\lVert Dz\rVert_2^4, \mathbb E\lVert Dz\rVert_4^4) = (p^2 z_2 + (p - p^2) z_4,\ p z_4)`.

    Here :math:`z_2 = \mathbb E\lVert z\rVert_2^4` and :math:`z_4 = \mathbb E\lVert z\rVert_4^4`, for a vector z whose
    law does not change when entries change their signs.

    Raises ValueError if p is not in (0, 1].

    Source: Lemma 13 of the paper, with sign symmetry as its hypothesis.

    >>> after_gate(5, 3, p=Fraction(1, 2))
    (Fraction(2, 1), Fraction(3, 2))
    """
    z2, z4, p = _numbers(z2, z4, _gate(p))
    return p**2 * z2 + (p - p**2) * z4, p * z4


def after_matrix(x2: Any, x4: Any, *, width: Any, sigma2: Any, kappa: Any) -> tuple[Any, Any]:
    r"""Return :math:`(\mathbb E\lVert Wx\rVert_2^4, \mathbb E\lVert Wx\rVert_4^4)` for any x that is independent of W.

    With :math:`x_2 = \mathbb E\lVert x\rVert_2^4` and :math:`x_4 = \mathbb E\lVert x\rVert_4^4` they are
    :math:`d\sigma^4[(d+2)x_2 + (\kappa-3)x_4]` and :math:`d\sigma^4[3x_2 + (\kappa-3)x_4]`. The width d counts the rows
    of W; the number of its columns does not matter.

    Raises ValueError if a number is out of its range.

    Source: Lemma 15 of the paper.

    >>> after_matrix(1, 1, width=1, sigma2=2, kappa=5)
    (Fraction(20, 1), Fraction(20, 1))
    """
    x2, x4, width, sigma2, kappa = _numbers(x2, x4, _width(width), _variance(sigma2), _kurtosis(kappa))
    common, excess = width * sigma2**2, (kappa - 3) * x4
    return common * ((width + 2) * x2 + excess), common * (3 * x2 + excess)


def recursion_matrix(*, width: Any, kappa: Any, p: Any) -> np.ndarray:
    r"""Return Q: one layer multiplies :math:`(\mathbb E\lVert a\rVert_2^4, \mathbb E\lVert a\rVert_4^4)` by :math:`p^2d\sigma^4 Q`.

    .. math:: Q = \begin{pmatrix} d+2 & \frac{\kappa-3+(1-p)(d+2)}{p} \\ 3 & \frac{\kappa-3p}{p} \end{pmatrix}

    Its trace is :math:`d - 1 + \kappa/p`, its determinant :math:`(\kappa-3)(d-1)/p`. Exact input gives a (2, 2) array of
    exact entries, arrays of shape (...) give (..., 2, 2) in float64.

    Raises ValueError if a number is out of its range.

    Source: Proposition 8 and Theorem 17 of the paper.

    >>> recursion_matrix(width=3, kappa=3, p=Fraction(1, 2))
    array([[Fraction(5, 1), Fraction(5, 1)],
           [Fraction(3, 1), Fraction(3, 1)]], dtype=object)
    """  # noqa: E501
    width, kappa, p, three = _numbers(_width(width), _kurtosis(kappa), _gate(p), 3)
    entries = [width + 2, (kappa - 3 + (1 - p) * (width + 2)) / p, three, (kappa - 3 * p) / p]
    entries = np.broadcast_arrays(*entries)
    return np.stack(entries, axis=-1).reshape(*entries[0].shape, 2, 2)


def fourth_moments(depth: int, *, width: Any, sigma2: Any, kappa: Any, p: Any, z2: Any, z4: Any) -> tuple[Any, Any]:
    r"""Return :math:`(\mathbb E\lVert a\rVert_2^4, \mathbb E\lVert a\rVert_4^4)` for :math:`a = W_\phi^{k:1}z`, k = ``depth``.

    :math:`z_2 = \mathbb E\lVert z\rVert_2^4` and :math:`z_4 = \mathbb E\lVert z\rVert_4^4` are those of the input, whose law
    must not change when its entries change their signs if p < 1. Floats overflow to infinity beyond 1e308; Fractions
    do not.

    Raises ValueError if a number is out of its range, or no vector of this width has such moments:
    :math:`z_4 \le z_2 \le d\,z_4`.

    Source: Proposition 8 and Theorem 17 of the paper.

    >>> fourth_moments(2, width=3, sigma2=Fraction(2, 3), kappa=3, p=Fraction(1, 2), z2=15, z4=9)
    (Fraction(320, 3), Fraction(64, 1))
    """  # noqa: E501
    if not isinstance(depth, int | np.integer) or depth < 0:
        raise ValueError(f"A depth is an integer from 0 on, not {depth!r}.")
    z2, z4, width, sigma2, kappa, p = _numbers(z2, z4, _width(width), _variance(sigma2), _kurtosis(kappa), _gate(p))
    slack = 1 + 1e-12 * (np.asarray(z2).dtype == float)
    if not _holds(lambda a, b, d: (b > 0) & (b <= a * slack) & (a <= d * b * slack), z2, z4, width):
        raise ValueError(f"No vector of width {width} has z2 = {z2} and z4 = {z4}: z4 <= z2 <= width * z4 must hold.")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for _ in range(depth):
            z2, z4 = after_matrix(*after_gate(z2, z4, p=p), width=width, sigma2=sigma2, kappa=kappa)
    if np.asarray(z2).dtype == float:  # an overflow may have ended in infinity minus infinity
        z2, z4 = (np.where(np.isnan(value), np.inf, value)[()] for value in (z2, z4))
    return z2, z4


def _numbers(*values: Any) -> tuple[Any, ...]:
    """Make all of them float64 if one is a float or an array, and integers exact fractions otherwise."""
    if any(np.ndim(value) or isinstance(value, float | np.floating) for value in values):
        return tuple(np.asarray(value, float)[()] for value in values)
    return tuple(Fraction(int(value)) if isinstance(value, int | np.integer) else value for value in values)


def _holds(condition: Callable[..., Any], *values: Any) -> bool:
    """Whether numbers satisfy a condition; symbols are taken at their word."""
    if any(getattr(value, "free_symbols", None) for value in values):
        return True
    return bool(np.all(condition(*(np.asarray(value) if np.ndim(value) else value for value in values))))


def _width(width: Any) -> Any:
    if not _holds(lambda value: (value >= 1) & (value < 1e15) & (value % 1 == 0), width):
        raise ValueError(f"A width is a positive integer, not {width}.")
    return width


def _variance(sigma2: Any) -> Any:
    if not _holds(lambda value: value > 0, sigma2):
        raise ValueError(f"A variance is positive, not {sigma2}.")
    return sigma2


def _kurtosis(kappa: Any) -> Any:
    if not _holds(lambda value: value >= 1, kappa):
        raise ValueError(f"A kurtosis is at least 1, not {kappa}.")
    return kappa


def _gate(p: Any) -> Any:
    if not _holds(lambda value: (value > 0) & (value <= 1), p):
        raise ValueError(f"The share p of open gates is above 0 and at most 1, not {p}.")
    return p
