r"""Neural chains: linear networks of width one, :math:`\mathcal L(w) = \frac1{2n}\sum_i (y_i - w_L\cdots w_1 x_i)^2`.

The forward pass on weights :math:`w_k = \tau u_k`, with :math:`u_k` uniform on (0, 1], is :math:`v = \prod_k w_k`.
Deep products under- and overflow, so laws and magnitudes are carried as natural logarithms.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

# e is not a float: E_HIGH + E_LOW is e to 32 digits, which makes ln(tau) - 1 exact to rounding near tau = e.
E_HIGH, E_LOW = 2.718281828459045, 1.4456468917292502e-16


def forward_moment(order: Any, *, depth: Any, tau: Any) -> Any:
    r"""Return the moment :math:`\mathbb E[v^m] = \left(\tau^m/(m+1)\right)^L` of the forward pass.

    Order m > -1, depth L >= 0 and tau > 0 may be integers, Fractions or sympy expressions, which give an exact
    result, or floats and arrays.

    Raises ValueError if a number is out of its range.

    Source: Proposition 3 of the paper, for any order.

    >>> forward_moment(3, depth=2, tau=2)
    Fraction(4, 1)
    """
    numbers = [not getattr(value, "free_symbols", None) for value in (order, depth, tau)]
    if numbers[0] and not np.all(np.asarray(order) > -1):
        raise ValueError(f"The order must be above -1, not {order}: lower moments are infinite.")
    if numbers[1] and not np.all(np.asarray(depth) >= 0):
        raise ValueError(f"A depth is at least 0, not {depth}.")
    if numbers[2] and not np.all(np.asarray(tau) > 0):
        raise ValueError(f"tau must be positive, not {tau}.")
    exact_tau = Fraction(tau) if isinstance(tau, int) else tau
    return (exact_tau**order / (order + 1)) ** depth


def erlang_cdf(xi: ArrayLike, *, depth: ArrayLike) -> np.ndarray:
    r"""Return :math:`\Pr(L\ln\tau - \ln v \le \xi) = 1 - e^{-\xi}\sum_{k<L}\xi^k/k!`, the Erlang(L, 1) law.

    It is 0 below 0. Source: Lemma 4 of the paper.

    >>> float(erlang_cdf(0.0, depth=3))
    0.0
    """
    return special.gammainc(_positive_depth(depth), np.maximum(xi, 0.0))


def erlang_median(depth: ArrayLike) -> np.ndarray:
    r"""Return :math:`\tilde L`, the median of Erlang(L, 1), with a relative error of at most 1e-12 at every depth.

    Up to L = 200 it is scipy's inverse of the incomplete gamma function, above Ramanujan's series
    :math:`L - \frac13 + \frac{8}{405L} + \frac{184}{25515L^2} + \dots`

    Source: Proposition 5 of the paper; Choi (1994) for the series.

    >>> float(erlang_median(1) - np.log(2)) < 1e-15
    True
    """
    return _positive_depth(depth) + _erlang_median_excess(depth)


def erlang_median_bounds(depth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    r"""Return Choi's bounds, :math:`L - \frac13 \le \tilde L \le L - 1 + \ln 2`.

    Source: Choi (1994), quoted in Proposition 5 of the paper.

    >>> low, high = erlang_median_bounds(7)
    >>> bool(low <= erlang_median(7) <= high)
    True
    """
    depth = _positive_depth(depth)
    return depth - 1 / 3, depth - 1 + np.log(2)


def median_forward(*, depth: ArrayLike, tau: ArrayLike, log: bool = False) -> np.ndarray:
    r"""Return the median :math:`\exp(L\ln\tau - \tilde L)` of the forward pass :math:`|v|`, or its logarithm.

    The logarithm is exact to rounding at any depth, also at tau = e, where :math:`L\ln\tau` and
    :math:`\tilde L` cancel. The median itself underflows where its logarithm is below -745.

    Source: Proposition 5 of the paper, with the Erlang median restored in the exponent.

    >>> float(median_forward(depth=10**9, tau=np.e, log=True).round(6))
    0.333333
    """
    value = log_typical_forward(depth=depth, tau=tau) - _erlang_median_excess(depth)
    return value if log else np.exp(value)


def log_typical_forward(*, depth: ArrayLike, tau: ArrayLike) -> np.ndarray:
    r"""Return :math:`\mathbb E[\ln v] = L(\ln\tau - 1)`, the logarithm of the typical forward pass :math:`(\tau/e)^L`.

    Source: Proposition 5 of the paper: :math:`v^{1/L} \to \tau/e` almost surely.

    >>> float(log_typical_forward(depth=4, tau=1.0))
    -4.0
    """
    tau = np.asarray(tau, float)
    if not np.all(tau > 0):
        raise ValueError("tau must be positive.")
    distance = (tau - E_HIGH - E_LOW) / E_HIGH
    rate = np.where(np.abs(distance) < 0.5, np.log1p(np.clip(distance, -0.5, 0.5)), np.log(tau) - 1)
    return _positive_depth(depth) * rate


def sample_log_forward(*, depth: int, tau: float, size: int, rng: np.random.Generator) -> np.ndarray:
    r"""Draw :math:`\ln v` for ``size`` random chains, each in O(1): one Erlang variate replaces L uniform ones.

    Source: Lemma 4 of the paper.

    >>> sample_log_forward(depth=3, tau=2.0, size=5, rng=np.random.default_rng(0)).shape
    (5,)
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, not {tau}.")
    return float(_positive_depth(depth)) * np.log(tau) - rng.standard_gamma(depth, size)


def loss(w: ArrayLike, *, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return the mean loss of chains ``w`` (..., L) on data ``x``, ``y`` (scalars or (n,)); shape (...).

    Source: Equation 1 of the paper with A = B = 1 and width 1.

    >>> float(loss([2.0, 3.0], x=1.0, y=4.0))
    2.0
    """
    x, y = _data(x, y)
    product = np.prod(_weights(w), axis=-1)
    return 0.5 * np.mean((y - product[..., None] * x) ** 2, axis=-1)


def gradient(w: ArrayLike, *, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    r"""Return :math:`\partial_k\mathcal L = (m_{xx}P - m_{xy})\prod_{j\ne k} w_j` with :math:`P = \prod_j w_j`.

    Weights ``w`` are (..., L), and zeros are fine; data ``x``, ``y`` are scalars or (n,), and
    :math:`m_{xx}, m_{xy}` are the means of :math:`x^2` and :math:`xy`. The result is (..., L), float64.

    Source: Theorem 6 of the paper and the paragraph before equation 3.

    >>> gradient([2.0, 3.0], x=1.0, y=4.0)
    array([6., 4.])
    """
    w = _weights(w)
    m_xx, m_xy = _moments(x, y)
    return (m_xx * np.prod(w, axis=-1) - m_xy)[..., None] * _product_of_others(w)


def hessian(w: ArrayLike, *, x: ArrayLike, y: ArrayLike) -> np.ndarray:
    r"""Return the Hessian of the loss of chains, (..., L, L).

    .. math:: H_{kk} = m_{xx}\prod_{j\ne k} w_j^2, \qquad H_{kl} = (2 m_{xx} P - m_{xy})\prod_{j\ne k,l} w_j.

    Parameters and source are those of :func:`gradient`.

    >>> hessian([2.0, 3.0], x=1.0, y=4.0)
    array([[9., 8.],
           [8., 4.]])
    """
    w = _weights(w)
    m_xx, m_xy = _moments(x, y)
    diagonal = np.eye(w.shape[-1], dtype=bool)
    without_k = np.where(diagonal, 1.0, w[..., None, :])
    factor = (2 * m_xx * np.prod(w, axis=-1) - m_xy)[..., None, None]
    return np.where(diagonal, m_xx * _product_of_others(w)[..., None] ** 2, factor * _product_of_others(without_k))


@dataclass(frozen=True)
class LogMagnitudes:
    """Natural logarithms of magnitudes on a chain, float64.

    ``gradient`` and ``diagonal`` are (..., L), every entry of the gradient and of the Hessian's diagonal;
    ``off_diagonal`` is (...), of the mean magnitude of the Hessian's other entries, NaN at depth 1.
    """

    gradient: np.ndarray
    diagonal: np.ndarray
    off_diagonal: np.ndarray


def log_magnitudes(w: ArrayLike, *, x: ArrayLike, y: ArrayLike) -> LogMagnitudes:
    """Return the logarithms of \\|gradient\\| and \\|Hessian\\| entries; no depth under- or overflows them.

    Weights ``w`` (..., L) that hold a zero raise ValueError: use :func:`gradient` and :func:`hessian` there.

    Source: Logarithm of Theorem 6's closed forms.

    >>> float(log_magnitudes(np.full(10_000, 0.5), x=1.0, y=1.0).gradient[0].round(3))
    -6930.779
    """
    w = _weights(w)
    if not np.all(w):
        raise ValueError("A weight is zero, so logarithms do not exist; use gradient and hessian instead.")
    m_xx, m_xy = _moments(x, y)
    logs = np.log(np.abs(w))
    total, depth = logs.sum(axis=-1), w.shape[-1]
    sign = np.prod(np.sign(w), axis=-1)
    smallest = logs.min(axis=-1)
    inverse = np.exp(smallest[..., None] - logs)  # 1/|w|, scaled to at most 1
    pairs = 2 * (np.cumsum(inverse, axis=-1)[..., :-1] * inverse[..., 1:]).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean_pair = np.log(pairs / np.float64(depth * (depth - 1))) - 2 * smallest
        log_m_xx = np.log(m_xx)
    others = total[..., None] - logs
    return LogMagnitudes(
        gradient=_log_residual(total, sign, m_xx, m_xy)[0][..., None] + others,
        diagonal=log_m_xx + 2 * others,
        off_diagonal=_log_residual(total, sign, 2 * m_xx, m_xy)[0] + total + log_mean_pair,
    )


def inertia(w: ArrayLike, *, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Return how many eigenvalues of the Hessian are positive, negative and zero: integers of shape (...), in O(L).

    If no weight is zero, :math:`H = D^{-1}\left[(a - b) I + b\,\mathbf 1\mathbf 1^\top\right]D^{-1}` with
    :math:`D = \operatorname{diag}(w)`, :math:`a - b = P(m_{xy} - m_{xx}P)` and
    :math:`a + (L-1)b = P\left((2L-1)m_{xx}P - (L-1)m_{xy}\right)`. By Sylvester's law, L - 1 eigenvalues have the sign
    of :math:`a - b`, and one has that of :math:`a + (L-1)b`. Zero weights leave a matrix of rank at most 2.

    Parameters are those of :func:`gradient`. No depth under- or overflows P here. A tie, such as P = y/x, is found
    where floating point finds it.

    Source: ours; the closed form follows from Theorem 6's derivatives.

    >>> [int(count) for count in inertia([0.5, -0.5, 0.5], x=1.0, y=1.0)]
    [1, 2, 0]
    """
    w = _weights(w)
    if np.isnan(w).any():
        raise ValueError("A weight is not a number, so the Hessian has no eigenvalues.")
    (m_xx, m_xy), depth, zeros = _moments(x, y), w.shape[-1], np.sum(w == 0, axis=-1)
    nonzero = np.where(w == 0, 1.0, w)
    with np.errstate(all="ignore"):
        running = np.cumprod(nonzero, axis=-1)
    safe = np.all((np.abs(running) > 1e-280) & (np.abs(running) < 1e280), axis=-1)
    product, total = np.where(safe, running[..., -1], 1.0), np.log(np.abs(nonzero)).sum(axis=-1)
    sign = np.prod(np.sign(nonzero), axis=-1)

    def residual(i: int, j: int) -> np.ndarray:
        """sign of i * m_xx * P - j * m_xy"""
        with np.errstate(over="ignore"):
            direct = np.sign(i * m_xx * product - j * m_xy)
        return np.where(safe, direct, _log_residual(total, sign, i * m_xx, j * m_xy)[1])

    many, one = -sign * residual(1, 1), sign * residual(2 * depth - 1, depth - 1)
    touched = (zeros <= 2) & (m_xy != 0) & (depth > 1)  # the off-diagonal of a matrix with one or two zero weights
    alone = ((zeros == 1) & (m_xx > 0)) | touched  # one zero weight leaves its own curvature
    positive = np.where(zeros == 0, (depth - 1) * (many > 0) + (one > 0), alone)
    negative = np.where(zeros == 0, (depth - 1) * (many < 0) + (one < 0), touched)
    return positive, negative, np.asarray(depth - positive - negative)


def _log_residual(total: np.ndarray, sign: np.ndarray, multiple: float, target: float) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm and sign of multiple * P - target, where the logarithm of abs(P) is the total."""
    with np.errstate(divide="ignore"):
        terms = [total + np.log(np.float64(multiple)), np.full_like(total, np.log(np.abs(target)))]
    return special.logsumexp(terms, axis=0, b=[sign, -np.sign(target) + 0 * sign], return_sign=True)


def _positive_depth(depth: ArrayLike) -> np.ndarray:
    depth = np.asarray(depth, float)
    if not (np.all(depth >= 1) and np.all(depth == np.floor(depth))):
        raise ValueError("A depth is a whole number, at least 1.")
    return depth


def _erlang_median_excess(depth: ArrayLike) -> np.ndarray:
    """The Erlang median less the depth, about -1/3."""
    depth = _positive_depth(depth)
    u = 1 / depth
    series = -1 / 3 + u * (8 / 405 + u * (184 / 25515 + u * (2248 / 3444525 - u * 19006408 / 15345358875)))
    return np.where(depth < 200, special.gammaincinv(np.minimum(depth, 200), 0.5) - depth, series)


def _weights(w: ArrayLike) -> np.ndarray:
    w = np.asarray(w, float)
    if w.ndim == 0 or w.shape[-1] == 0:
        raise ValueError("A chain needs at least one weight: w has the shape (..., L).")
    return w


def _data(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y are scalars or vectors of one length, not shapes {x.shape} and {y.shape}.")
    return x, y


def _moments(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    x, y = _data(x, y)
    return float(np.mean(x * x)), float(np.mean(x * y))


def _product_of_others(w: np.ndarray) -> np.ndarray:
    """The product of all entries of the last axis but each one, without division."""
    return np.moveaxis(_product_of_other_rows(np.ascontiguousarray(np.moveaxis(w, -1, 0))), 0, -1)


def _product_of_other_rows(rows: np.ndarray) -> np.ndarray:
    """The same along the first axis: long contiguous rows make it fast."""
    others, before, after = np.empty_like(rows), np.ones(rows.shape[1:]), np.ones(rows.shape[1:])
    for k in range(len(rows)):
        others[k] = before
        before = before * rows[k]
    for k in range(len(rows) - 1, -1, -1):
        others[k] *= after
        after = after * rows[k]
    return others
