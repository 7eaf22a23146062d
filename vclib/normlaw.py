r"""The law of the norm of a random signal: :math:`T = \lVert W^L\cdots W^1 z\rVert^2/\lVert z\rVert^2`, any width d, depth L.

For Gaussian weights of variance :math:`\sigma^2` the law is exact. A layer multiplies the squared norm by
:math:`\sigma^2\chi^2_d`, independently of all others; with a ReLU after each matrix, by :math:`\sigma^2\chi^2_K`, where the
number K of open gates is Binomial(d, 1/2). At K = 0 the network is dead, and T = 0. (As a prior of Bayesian networks this
is known: Zavatone-Veth & Pehlevan 2021, Noci et al. 2021.) So

.. math:: \ln T = L\,(\ln 2\sigma^2 + \mu) + \sqrt{L}\,Y

with a law of Y that depends on d and L alone. Its distribution function is computed from the moments of one factor by
Mellin-Barnes inversion. For ReLU networks, "alive" means: given that the network is not dead.

Deep products under- and overflow, so all laws are carried as natural logarithms, in float64.
"""  # noqa: E501

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

BERNOULLI = np.array([1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730])  # B_2, B_4, ..., B_12
SHIFT = 16  # beyond this argument, Stirling's series with these numbers is exact to rounding


def lyapunov_exponent(width: ArrayLike, *, sigma2: ArrayLike, relu: bool = False) -> np.ndarray:
    r"""Return the mean growth :math:`\mathbb E[\ln T]/L` of the logarithm of the squared norm in one layer.

    It is :math:`\ln 2\sigma^2 + \psi(d/2)` in linear networks, with the digamma function :math:`\psi`, and
    :math:`\ln 2\sigma^2 + \mathbb E[\psi(K/2) \mid K \ge 1]` in ReLU networks that are alive.

    Raises ValueError if a width or variance is out of its range.

    Source: ours; Newman (1986) for linear networks.

    >>> float(lyapunov_exponent(2, sigma2=0.5)) == -np.euler_gamma
    True
    """
    return np.log(2 * _variance(sigma2)) + _over(lambda d: _law(d, relu).mean, width)


def critical_variance(width: ArrayLike, *, relu: bool = False) -> np.ndarray:
    r"""Return the variance :math:`\sigma_*^2 = e^{-\mu}/2` at which the Lyapunov exponent is zero.

    In linear networks :math:`d\sigma_*^2 = 1 + \frac1d + \frac5{6d^2} + \dots`, in ReLU networks that are alive
    :math:`\frac d2\sigma_*^2 = 1 + \frac5{2d} + \frac{173}{24d^2} + \dots`.

    Raises ValueError if a width is not a positive integer.

    Source: ours.

    >>> float(critical_variance(100).round(6))
    0.010101
    """
    return np.exp(-_over(lambda d: _law(d, relu).mean, width)) / 2


def optimal_variance(width: ArrayLike, depth: ArrayLike, *, relu: bool = False) -> np.ndarray:
    r"""Return :math:`g(d, L)`, the variance at which the median of T is 1 (ReLU: of the networks that are alive).

    It tends to :func:`critical_variance` as the depth grows.

    Raises ValueError if a width or depth is not a positive integer.

    Source: ours; Section 4 of the paper asks for it.

    >>> bool(np.isclose(median(3, 50, sigma2=optimal_variance(3, 50)), 1, rtol=1e-12))
    True
    """
    return np.exp(-_log_quantile(0.5, width, depth, relu) / np.asarray(depth)) / 2


def median(
    width: ArrayLike, depth: ArrayLike, *, sigma2: ArrayLike, relu: bool = False, log: bool = False
) -> np.ndarray:
    r"""Return the median of :math:`T`, or its logarithm (ReLU: of the networks that are alive).

    This is not the median of all ReLU networks, which is 0 where :func:`death_probability` is at least 1/2.
    The logarithm has an absolute error below 1e-12 up to a depth of a thousand, and of rounding in
    :math:`L\ln 2\sigma^2` and :math:`L\mu` beyond.

    Raises ValueError if a width or depth is not a positive integer, or a variance not positive.

    Source: ours; Theorem 9 of the paper bounds it.

    >>> bool(np.isclose(median(2, 1, sigma2=0.5), np.log(2), rtol=1e-12))
    True
    """
    return quantile(0.5, width, depth, sigma2=sigma2, relu=relu, log=log)


def quantile(
    probability: ArrayLike,
    width: ArrayLike,
    depth: ArrayLike,
    *,
    sigma2: ArrayLike,
    relu: bool = False,
    log: bool = False,
    tilt: ArrayLike = 0.0,
) -> np.ndarray:
    r"""Return the value that T stays below with the given probability, or its logarithm; the inverse of :func:`cdf`.

    ReLU: of the networks that are alive. A ``tilt`` weighs networks as in :func:`cdf`. The value underflows to 0 or
    overflows to infinity where its logarithm does not.

    Raises ValueError if a width or depth is not a positive integer, a variance not positive, a tilt too low, or a
    probability not between 1e-12 and 1 - 1e-12.

    Source: ours.

    >>> bool(np.isclose(quantile(0.25, 2, 1, sigma2=0.5), -np.log(0.75), rtol=1e-12))
    True
    """
    value = _log_quantile(probability, width, depth, relu, tilt) + np.asarray(depth) * np.log(2 * _variance(sigma2))
    return value if log else _exp(value)


def cdf(
    log_t: ArrayLike,
    width: ArrayLike,
    depth: ArrayLike,
    *,
    sigma2: ArrayLike,
    relu: bool = False,
    tilt: ArrayLike = 0.0,
) -> np.ndarray:
    r"""Return :math:`\Pr(\ln T \le \texttt{log\_t})`, to about 1e-14 (ReLU: for networks that are alive).

    With a ``tilt`` s it is the share of the s-th moment that comes from there,
    :math:`\mathbb E[T^s;\, \ln T \le \texttt{log\_t}]/\mathbb E[T^s]`.

    Raises ValueError if a width or depth is not a positive integer, a variance not positive, or a tilt not above
    -d/2 (linear) or -1/2 (ReLU), where the moment is infinite.

    Source: ours, by Mellin-Barnes inversion.

    >>> bool(np.isclose(cdf(0.0, 2, 1, sigma2=0.5), 1 - np.exp(-1), rtol=1e-13))
    True
    """

    def one(log_t: float, d: float, depth: float, s: float) -> float:
        law = _law(d, relu, s)
        return law.cdf(log_t - _depth(depth) * law.mean, int(depth))

    return _over(one, log_t - np.asarray(depth) * np.log(2 * _variance(sigma2)), width, depth, tilt)


def death_probability(width: ArrayLike, depth: ArrayLike) -> np.ndarray:
    r"""Return :math:`1 - (1 - 2^{-d})^L`, the probability that L random ReLU layers of width d let nothing through.

    It holds for all weight laws that are symmetric about 0 and give no single value a positive probability.

    Raises ValueError if a width is not a positive integer or a depth not an integer from 0 on.

    Source: Lu et al. (2020).

    >>> float(death_probability(1, 3))
    0.875
    """
    return _over(lambda d, depth: -np.expm1(_depth(depth, 0) * np.log1p(-(2.0 ** -_width(d)))), width, depth)


def sample(
    width: int,
    depth: int,
    *,
    sigma2: float,
    relu: bool = False,
    log: bool = False,
    size: int,
    rng: np.random.Generator,
) -> np.ndarray:
    r"""Draw T, or its logarithm, for ``size`` random networks; each takes L chi-squares in place of L matrices.

    Dead ReLU networks are among them, with T = 0. The result is (size,).

    Raises ValueError if width or depth is not a positive integer or the variance not positive.

    Source: ours.

    >>> sample(3, 100, sigma2=1 / 3, size=5, rng=np.random.default_rng(0)).shape
    (5,)
    """
    width, depth = _width(width), _depth(depth)
    result = np.full(size, depth * np.log(2 * float(_variance(sigma2))))
    for start in range(0, size, 4096):
        part = result[start : start + 4096]
        product = np.ones_like(part)
        for layer in range(1, depth + 1):
            product *= _half_chi_squares(width, len(part), relu, rng)
            if layer % 16 == 0 or layer == depth:  # sixteen factors do not under- or overflow
                with np.errstate(divide="ignore"):
                    part += np.log(product)
                product.fill(1.0)
    return result if log else _exp(result)


def simulate(
    draw: Callable[[tuple[int, ...]], np.ndarray],
    z: Callable[[int], np.ndarray],
    *,
    width: int,
    depth: int,
    sigma2: float,
    relu: bool = False,
    size: int,
) -> Iterator[np.ndarray]:
    r"""Multiply random matrices, any weight law: yield signals :math:`a^1 = z, \dots, a^{L+1} = W_\phi^{L:1}z` in batches.

    ``draw(shape)`` draws weights of mean 0 and variance 1, which are scaled by :math:`\sigma`; ``z(n)`` gives n inputs,
    (width, n). A batch is (depth + 1, width, n), float64, and the n of all batches add up to ``size``. Memory does not
    grow with the size. With ``relu`` the gates come before the matrices: :math:`a^{k+1} = W^k \max(a^k, 0)`.

    Raises ValueError if width or depth is not a positive integer, or the variance not positive.

    Source: Equation 8 of the paper.

    >>> rng = np.random.default_rng(0)
    >>> batches = simulate(rng.standard_normal, lambda n: np.ones((3, n)), width=3, depth=5, sigma2=1 / 3, size=20_000)
    >>> [batch.shape for batch in batches]
    [(6, 3, 11111), (6, 3, 8889)]
    """  # noqa: E501
    width, depth, sigma = _width(width), _depth(depth), float(np.sqrt(_variance(sigma2)))
    batch = max(100_000 // width**2, 16)  # so that the matrices of one layer fit into the cache
    for start in range(0, size, batch):
        n = min(batch, size - start)
        signals = np.empty((depth + 1, width, n))
        signals[0] = z(n)
        for below, above in itertools.pairwise(signals):
            passed = np.maximum(below, 0) if relu else below
            np.einsum("ijn,jn->in", draw((width, width, n)), sigma * passed, out=above)
        yield signals


class _Law:
    """The law of the logarithm of one factor, up to ln 2 sigma2: a mixture of logarithms of gamma variables."""

    def __init__(self, width: int, relu: bool, tilt: float) -> None:
        shapes, log_weights = np.array([width / 2]), np.zeros(1)
        if relu:
            gates = np.arange(1.0, width + 1)  # open gates of a network that is alive
            shapes, log_weights = gates / 2, -np.log(width + 1) - special.betaln(gates + 1, width - gates + 1)
        if not shapes.min() + tilt > 0:
            raise ValueError(f"A tilt is above {-shapes.min():g} here, not {tilt:g}: the moment is infinite.")
        log_weights = log_weights + special.gammaln(shapes + tilt) - special.gammaln(shapes)
        weights = special.softmax(log_weights)
        kept = weights > 1e-20
        self.shapes, self.weights = shapes[kept] + tilt, weights[kept] / weights[kept].sum()
        digamma = special.psi(self.shapes)
        self.mean = float(self.weights @ digamma)
        self.offsets = digamma - self.mean
        self.variance = float(self.weights @ (special.polygamma(1, self.shapes) + self.offsets**2))

    def cumulant(self, s: np.ndarray) -> np.ndarray:
        """Return the logarithm of E exp(s X) for the centred factor X; s is complex (nodes,)."""
        grown = _log_gamma_growth(self.shapes, s)
        exponent = grown + self.offsets * s[:, None]
        near = special.log1p((_expm1_minus(exponent) + grown) @ self.weights)  # exact to rounding near s = 0
        with np.errstate(divide="ignore"):
            far = np.log(np.exp(exponent) @ self.weights)  # and far away
        return np.where(far.real > -0.5, near, far)

    @lru_cache(maxsize=64)  # noqa: B019
    def contour(self, depth: int, right: bool) -> tuple[np.ndarray, np.ndarray]:
        """Nodes s and weights of the trapezoid rule for the tail of the centred sum of ``depth`` factors."""
        real = 1 / np.sqrt(depth * self.variance)
        if not right:
            real = -min(real, self.shapes.min() / 3)  # stay away from the pole
        step = 2 * np.pi * abs(real) / 38  # the error is exp(-38)
        nodes, weights = [], []
        for start in range(0, 100_000, 64):
            s = real + 1j * step * np.arange(start, start + 64)
            nodes.append(s)
            logarithm = self.cumulant(s)  # minus infinity far out
            weights.append(np.exp(depth * np.where(logarithm.real > -700, logarithm, -700)) / s * step / np.pi)
            if abs(weights[-1][-1]) < 1e-18 * abs(weights[0][0]):
                break
        nodes, weights = np.concatenate(nodes), np.concatenate(weights)
        weights[0] /= 2
        return nodes, weights

    def cdf(self, x: float, depth: int) -> float:
        """Return Pr(sum of ``depth`` centred factors <= x)."""
        x = np.clip(x, -1e15, 1e15)  # infinity times a complex number is not a number
        nodes, weights = self.contour(depth, x >= 0)
        tail = float((weights * np.exp(-nodes * x)).sum().real)
        return min(max(1 - tail if x >= 0 else -tail, 0.0), 1.0) + 0.0  # no -0

    @lru_cache(maxsize=4096)  # noqa: B019
    def quantile(self, probability: float, depth: int) -> float:
        deviation = np.sqrt(depth * self.variance)
        low, high = -deviation, deviation
        while self.cdf(low, depth) > probability:
            low *= 2
        while self.cdf(high, depth) < probability:
            high *= 2
        return optimize.brentq(lambda x: self.cdf(x, depth) - probability, low, high, xtol=1e-15 * deviation)


@lru_cache(maxsize=1024)
def _law(width: float, relu: bool, tilt: float = 0.0) -> _Law:
    return _Law(_width(width), bool(relu), float(tilt))


def _half_chi_squares(width: int, count: int, relu: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw halves of chi-square variables with width degrees of freedom, or with Binomial(width, 1/2) of them."""
    if relu:
        return rng.standard_gamma(rng.binomial(width, 0.5, count) / 2)
    if width > 4:
        return rng.standard_gamma(width / 2, count)
    total = rng.standard_normal(count) ** 2 / 2 if width % 2 else np.zeros(count)
    for _ in range(width // 2):  # two degrees make an exponential variable, which is cheap
        total += rng.standard_exponential(count)
    return total


def _log_quantile(
    probability: ArrayLike, width: ArrayLike, depth: ArrayLike, relu: bool, tilt: ArrayLike = 0.0
) -> np.ndarray:
    """Return the quantile of ln T without L ln(2 sigma2)."""

    def one(probability: float, d: float, depth: float, s: float) -> float:
        if not 1e-12 <= probability <= 1 - 1e-12:
            raise ValueError(f"A probability must be between 1e-12 and 1 - 1e-12 here, not {probability}.")
        law, depth = _law(d, relu, s), _depth(depth)
        return depth * law.mean + law.quantile(probability, depth)

    return _over(one, probability, width, depth, tilt)


def _log_gamma_growth(a: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return ln G(a + s) - ln G(a) - s psi(a) for the gamma function G, (nodes, shapes); large terms never cancel."""
    s = s[:, None]
    total = np.zeros((len(s), len(a)), complex)
    for j in range(SHIFT):  # G(a + 1) = a G(a)
        total -= _log1p_minus(s / (a + j))
    b = a + SHIFT
    u = s / b
    rest = _log1p_minus(u)
    total += b * ((1 + u) * rest + u**2) - rest / 2 + BERNOULLI[0] / 2 * u**2 / (1 + u) / b
    for k, number in enumerate(BERNOULLI[1:], 2):
        odd = 2 * k - 1
        total += number / (2 * k * odd) * b**-odd * ((1 + u) ** -odd - 1 + odd * u)
    return total


def _log1p_minus(u: np.ndarray) -> np.ndarray:
    """Return ln(1 + u) - u, also for small complex u."""
    return _near_zero(u, lambda u: special.log1p(u) - u, [(-1) ** (n + 1) / n for n in range(2, 36)])


def _expm1_minus(u: np.ndarray) -> np.ndarray:
    """Return exp(u) - 1 - u, also for small complex u."""
    return _near_zero(u, lambda u: special.expm1(u) - u, [1 / special.factorial(n) for n in range(2, 18)])


def _near_zero(u: np.ndarray, function: Callable[[np.ndarray], np.ndarray], coefficients: list[float]) -> np.ndarray:
    """Evaluate a function directly where |u| >= 0.3, and by its series from u^2 on elsewhere."""
    small = np.abs(u) < 0.3
    result = np.empty_like(u)
    result[~small] = function(u[~small])
    series = np.zeros_like(u[small])
    for coefficient in reversed(coefficients):
        series = series * u[small] + coefficient
    result[small] = series * u[small] ** 2
    return result


def _exp(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(value)


def _over(function: Callable[..., float], *arguments: ArrayLike) -> np.ndarray:
    return np.vectorize(function, otypes=[float])(*arguments)[()]


def _width(width: Any) -> int:
    if not (1 <= width < 1e15 and width == int(width)):
        raise ValueError(f"A width is a positive integer, not {width}.")
    return int(width)


def _depth(depth: Any, least: int = 1) -> int:
    if not (least <= depth < 1e15 and depth == int(depth)):
        raise ValueError(f"A depth is an integer from {least} on, not {depth}.")
    return int(depth)


def _variance(sigma2: ArrayLike) -> np.ndarray:
    if not np.all(np.asarray(sigma2) > 0):
        raise ValueError(f"A variance is positive, not {sigma2}.")
    return np.asarray(sigma2, float)
