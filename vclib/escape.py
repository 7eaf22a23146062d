r"""Leaving the plateau: exact escape times of flows on the neural chain, and many optimiser paths at once.

A *rule* turns a gradient into a direction, and an optimiser steps by ``-step_size * direction``. The rules below follow
torch.optim to rounding. A rule of your own is any function ``rule(gradient, memory, k)``: ``gradient`` is (L, ...),
``memory`` is a dictionary that is empty at first, ``k`` counts the steps from 1, and it returns an array (L, ...).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import mpmath
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from .chain import _data, _moments, _positive_depth, _product_of_other_rows, _weights

Rule = Callable[[np.ndarray, dict[str, Any], int], np.ndarray]
NOISE_IN = ("gradient", "update", "weights")


def gradient_flow_time(
    depth: ArrayLike, *, w0: ArrayLike, w1: ArrayLike, x: ArrayLike = 1.0, y: ArrayLike = 1.0
) -> np.ndarray:
    r"""Return the time that gradient flow on a chain of equal weights takes from ``w0`` to ``w1``.

    The flow is :math:`\dot w = xy\,w^{L-1} - x^2 w^{2L-1}`, with the target :math:`w^* = (y/x)^{1/L}`. In units
    of the target, :math:`u = w/w^*`, the time is :math:`T = \frac{(w^*)^{2-L}}{xy}\left[G(u_1) - G(u_0)\right]` with

    .. math:: G(u) = \frac{u^{2-L}}{2-L} + \frac{u^2}{2}\,{}_2F_1\left(1, \tfrac2L; 1 + \tfrac2L; u^L\right),

    and :math:`\ln u` for the first term if L = 2. All arguments broadcast, and all weights and data are positive. The
    time is 0 if w1 = w0, and infinite if w1 is the target, or if it exceeds the largest float.

    Raises ValueError if a number is not positive, or if the flow never passes ``w1`` (it does not lie between
    ``w0`` and the target).

    Source: Equation 3 and Proposition 7 of the paper bound it; the closed form is ours.

    >>> float(gradient_flow_time(2, w0=0.5, w1=0.8).round(12))  # ln(w / sqrt(1 - w^2)) between the two
    0.836988216786
    """
    depth = _positive_depth(depth)
    w0, w1, x, y = (np.asarray(value, float) for value in (w0, w1, x, y))
    if not all(np.all((value > 0) & np.isfinite(value)) for value in (w0, w1, x, y)):
        raise ValueError("Weights w0, w1 and data x, y must be positive numbers.")
    with np.errstate(all="ignore"):
        target = (y / x) ** (1 / depth)
        start, end = w0 / target, w1 / target
        end = np.where(np.abs(end - 1) < 4e-16, 1.0, end)
        if not np.all(((start <= end) & (end <= 1)) | ((start >= end) & (end >= 1)) | (w0 == w1)):
            raise ValueError("The flow moves from w0 towards (y/x)^(1/L): w1 must lie between the two.")
        ratio = np.log1p((w1 - w0) / w0)
        plateau = start ** (2 - depth) * ratio * special.exprel((2 - depth) * ratio)
        rising = plateau + _below_target(end, depth) - _below_target(start, depth)
        falling = _above_target(end, depth) - _above_target(start, depth)
        time = np.where(start < 1, rising, falling) * target ** (2 - depth) / (x * y)
    return np.where(w0 == w1, 0.0, np.where(end == 1, np.inf, time))


def _below_target(u: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """An antiderivative of u / (1 - u^L) for u < 1."""
    u = np.minimum(u, 1.0)
    return u**2 / 2 * _hypergeometric(2 / depth, depth * np.log(u))


def _above_target(u: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """An antiderivative of u^(1 - L) / (1 - u^L) for u > 1."""
    u, layers = np.maximum(u, 1.0), np.maximum(depth, 2)
    deep = u ** (2 - 2 * layers) / (2 * layers - 2) * _hypergeometric(2 - 2 / layers, -layers * np.log(u))
    return np.where(depth == 1, -np.log(u - 1), deep)


def _hypergeometric(p: np.ndarray, log_z: np.ndarray) -> np.ndarray:
    """2F1(1, p; 1 + p; z), with its logarithm near z = 1; scipy wants c - b to be 1 to the last bit."""
    c, gap = 1 + p, -np.expm1(log_z)
    near = -p * (np.log(gap) + special.digamma(p) + np.euler_gamma)
    return np.where(gap < 1e-11, near, special.hyp2f1(1, c - 1, c, np.exp(log_z)))


def rmsprop_flow_time(
    depth: ArrayLike, *, w0: ArrayLike, w1: ArrayLike, alpha: ArrayLike, ratio0: ArrayLike
) -> np.ndarray:
    r"""Return the time that the RMSprop flow on a chain of equal weights takes from ``w0`` up to ``w1``.

    The flow is :math:`\dot w = g/\sqrt v,\ \dot v = \alpha (g^2 - v)` with the plateau's gradient
    :math:`g = w^{L-1}`, no epsilon, and ``ratio0`` :math:`= \sqrt{v(0)}/g(0)`. The ratio :math:`r = \sqrt v/g` obeys
    the Riccati equation :math:`r' = \frac\alpha2(1 - r^2) - \frac{L-1}{w} r` in w, hence
    :math:`T = \frac2\alpha \ln\frac{\varphi(w_1)}{\varphi(w_0)}` where, with :math:`\nu = \frac L2 - 1`,

    .. math:: \varphi(w) = w^{-\nu}\left[A\,I_\nu(\tfrac{\alpha w}2) + B\,K_\nu(\tfrac{\alpha w}2)\right],
              \qquad \varphi'(w_0) = \tfrac\alpha2\,\mathtt{ratio0}\,\varphi(w_0).

    All arguments broadcast. Time is in iterations times step size, and :math:`\alpha = -\ln\beta_2` over step size.
    The Bessel functions are mpmath's, so that no depth under- or overflows.

    Raises ValueError if a number is out of its range: depth >= 1, 0 < w0 <= w1, alpha > 0, ratio0 >= 0.

    Source: Section 3 of the paper, "Curvature Adaptation of RMSprop"; the solution is ours.

    >>> float(rmsprop_flow_time(64, w0=0.8, w1=1.0, alpha=10.0, ratio0=0.0).round(4))
    0.0132
    """
    values = [_positive_depth(depth), *(np.asarray(value, float) for value in (w0, w1, alpha, ratio0))]
    if not np.all((values[1] > 0) & (values[1] <= values[2]) & np.isfinite(values[2])):
        raise ValueError("The flow grows: it needs 0 < w0 <= w1.")
    if not (np.all((values[3] > 0) & np.isfinite(values[3])) and np.all((values[4] >= 0) & np.isfinite(values[4]))):
        raise ValueError("alpha must be positive, and ratio0 at least 0.")

    def time(depth: float, w0: float, w1: float, alpha: float, ratio0: float) -> float:
        with mpmath.workdps(50):  # phi(w1) / phi(w0) may be 1 + 1e-20
            order, half = mpmath.mpf(depth) / 2 - 1, mpmath.mpf(alpha) / 2
            a, b = half * mpmath.mpf(w0), half * mpmath.mpf(w1)
            growing = mpmath.besselk(order + 1, a) + ratio0 * mpmath.besselk(order, a)
            decaying = mpmath.besseli(order + 1, a) - ratio0 * mpmath.besseli(order, a)
            solution = mpmath.besseli(order, b) * growing + mpmath.besselk(order, b) * decaying
            return float(mpmath.log(a * (a / b) ** order * solution) / half)

    return np.vectorize(time, otypes=[float])(*values)


def _share(value: float, name: str) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value}.")
    return value


def gradient_descent() -> Rule:
    """The gradient itself."""
    return lambda gradient, memory, k: gradient


def momentum(*, beta: float = 0.9) -> Rule:
    r"""Heavy ball: :math:`m \leftarrow \beta m + g`, direction m (torch.optim.SGD with momentum)."""
    beta = _share(beta, "beta")

    def rule(gradient: np.ndarray, memory: dict[str, Any], k: int) -> np.ndarray:
        memory["m"] = beta * memory.get("m", 0.0) + gradient
        return memory["m"]

    return rule


def rmsprop(*, beta2: float = 0.9, eps: float = 1e-8) -> Rule:
    r""":math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2` from 0, direction :math:`g/(\sqrt v + \epsilon)`.

    Where the denominator is 0, which needs eps = 0, the direction is 0. torch.optim.RMSprop calls :math:`\beta_2`
    ``alpha``, and its default is 0.99; the paper uses 0.9.
    """
    beta2 = _share(beta2, "beta2")

    def rule(gradient: np.ndarray, memory: dict[str, Any], k: int) -> np.ndarray:
        memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        return _quotient(gradient, np.sqrt(memory["v"]) + eps)

    return rule


def adam(*, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Rule:
    r"""Adam: averages m of g and v of g², with bias correction; :math:`\hat m/(\sqrt{\hat v} + \epsilon)`."""
    beta1, beta2 = _share(beta1, "beta1"), _share(beta2, "beta2")

    def rule(gradient: np.ndarray, memory: dict[str, Any], k: int) -> np.ndarray:
        memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
        memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        return _quotient(memory["m"] / (1 - beta1**k), np.sqrt(memory["v"] / (1 - beta2**k)) + eps)

    return rule


def sign_descent() -> Rule:
    """The sign of each entry of the gradient: RMSprop without memory and without eps."""
    return lambda gradient, memory, k: np.sign(gradient)


def normalized() -> Rule:
    """The gradient over its norm: the size is forgotten for the whole vector, not for each weight."""
    return lambda gradient, memory, k: _quotient(gradient, np.sqrt(np.sum(gradient**2, axis=0)))


def clipped(*, max_norm: float = 1.0) -> Rule:
    r"""The gradient times :math:`\min(1, \mathtt{max\_norm}/(\|g\| + 10^{-6}))`, as torch's ``clip_grad_norm_``."""
    return lambda gradient, memory, k: (
        gradient * np.minimum(1.0, max_norm / (np.sqrt(np.sum(gradient**2, axis=0)) + 1e-6))
    )


@dataclass(frozen=True)
class Paths:
    """Optimiser paths, one for each run (...), at the T iterations that were recorded.

    ``time`` (...) is the first iteration whose loss is below the threshold, infinite if there was none; ``diverged``
    (...) says where the loss was no longer finite at the end. ``w`` is (T, ..., L), ``loss`` (T, ...), and
    ``second_moment`` (T, ..., L) the rule's v, NaN before its first step or where it keeps none.
    """

    time: np.ndarray
    diverged: np.ndarray
    iterations: np.ndarray
    w: np.ndarray
    loss: np.ndarray
    second_moment: np.ndarray


def descend(
    w: ArrayLike,
    rule: Rule,
    *,
    step_size: ArrayLike,
    iterations: int,
    x: ArrayLike = 1.0,
    y: ArrayLike = 1.0,
    noise: ArrayLike = 0.0,
    noise_in: str = "gradient",
    rng: np.random.Generator | None = None,
    schedule: Callable[[int], float] = lambda k: 1.0,
    threshold: float = 0.25,
    record: Sequence[int] = (),
) -> Paths:
    r"""Run one optimiser on many neural chains at once, in float64.

    Starting weights ``w`` (..., L), ``step_size`` (...) and ``noise`` (...) broadcast to the runs (...). Step k,
    from 1, is ``w -= step_size * schedule(k) * rule(gradient)``. Independent Gaussian noise of deviation ``noise``
    enters in one of three places: added to the ``"gradient"`` before the rule sees it, added to the ``"update"``
    direction that the rule returns, or, times the square root of the step size, added to the ``"weights"``.

    ``record`` lists the iterations to keep, 0 being the start. The run ends early when every chain has escaped or
    diverged and nothing is left to record.

    Raises ValueError, which says what is accepted, for anything else.

    Source: Section 3, "Effect of noise", and Appendix C.2 of the paper, which does not say where the noise enters.

    >>> int(descend(np.full(10, 0.5), rmsprop(eps=0.0), step_size=0.01, iterations=100).time)
    17
    """
    w, step_size, noise = _weights(w), np.asarray(step_size, float), np.asarray(noise, float)
    noisy, wanted = bool(np.any(noise)), set(record)
    if not callable(rule) or rule in (gradient_descent, momentum, rmsprop, adam, sign_descent, normalized, clipped):
        raise ValueError(f"A rule is a function such as escape.rmsprop(), with its brackets, not {rule!r}.")
    if not (isinstance(iterations, Integral) and iterations >= 0 and wanted <= set(range(iterations + 1))):
        raise ValueError("iterations is a whole number, at least 0, and record lists iterations from 0 to it.")
    if not (np.all(step_size > 0) and np.all(noise >= 0)):
        raise ValueError("Step sizes must be positive, and noise at least 0.")
    if noise_in not in NOISE_IN:
        raise ValueError(f"The noise enters in one of {', '.join(NOISE_IN)}, not in {noise_in!r}.")
    if noisy and not hasattr(rng, "standard_normal"):
        raise ValueError("Noise needs a generator: pass rng=np.random.default_rng(seed).")
    try:
        runs = np.broadcast_shapes(w.shape[:-1], step_size.shape, noise.shape)
    except ValueError:
        shapes = f"{w.shape[:-1]}, {step_size.shape} and {noise.shape}"
        raise ValueError(f"The shapes of chains, step_size and noise do not broadcast: {shapes}.") from None
    depth, padding = w.shape[-1], (1,) * (len(runs) - w.ndim + 1)
    rows = np.moveaxis(w, -1, 0).reshape(depth, *padding, *w.shape[:-1])
    w = np.array(np.broadcast_to(rows, (depth, *runs)), order="C")
    (x, y), (m_xx, m_xy) = _data(x, y), _moments(x, y)
    best = m_xy / m_xx if m_xx else 0.0
    least = float(np.mean((y - best * x) ** 2))
    memory: dict[str, Any] = {}
    time, kept, last = np.full(runs, np.inf), [], max(wanted, default=-1)
    with np.errstate(all="ignore"):
        for k in range(iterations + 1):
            product, gradient = _product_and_gradient(w, m_xx, m_xy)
            loss = 0.5 * (m_xx * (product - best) ** 2 + least)
            time[(loss < threshold) & np.isinf(time)] = k
            if k in wanted:
                v = np.broadcast_to(np.asarray(memory.get("v", np.nan)), w.shape)
                kept.append((k, np.moveaxis(w, 0, -1).copy(), loss, np.moveaxis(v, 0, -1).copy()))
            if k == iterations or (k >= last and np.all(np.isfinite(time) | ~np.isfinite(loss))):
                break
            step = step_size * schedule(k + 1)
            draw = noise * rng.standard_normal(w.shape) if noisy else 0.0
            if noise_in == "gradient":
                gradient = gradient + draw
            direction = rule(gradient, memory, k + 1)
            if np.shape(direction) != w.shape:
                raise ValueError(f"The rule must return an array of the gradient's shape {w.shape}.")
            w = w - step * (direction + draw if noise_in == "update" else direction)
            if noise_in == "weights":
                w += np.sqrt(step) * draw
    columns = [np.array(column) for column in zip(*kept, strict=True)] if kept else [np.empty(0)] * 4
    return Paths(time, ~np.isfinite(loss), *columns)


def _product_and_gradient(w: np.ndarray, m_xx: float, m_xy: float) -> tuple[np.ndarray, np.ndarray]:
    """P and the gradient, with the layers along the first axis."""
    others = _product_of_other_rows(w)
    product = others[0] * w[0]
    return product, (m_xx * product - m_xy) * others


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, and 0 where the denominator is 0."""
    return numerator / np.where(denominator == 0, 1.0, denominator)
