"""A check can fail: each core formula is broken on purpose, and the small check beside it must turn red."""

from fractions import Fraction as Q

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats

from vclib import chain, curvature, initialization, networks
from vclib.initialization import WeightLaw, he
from vclib.networks import MLP, mlp

W, X, Y = np.array([0.5, -1.5, 2.0]), np.array([1.0, 2.0]), np.array([0.5, -1.0])


def rng():
    return torch.Generator().manual_seed(3)


def small_net(activation="relu"):
    net = mlp(depth=2, width=2, inputs=3, outputs=2, law=he, activation=activation, seeds=3, generator=rng())
    return net, torch.randn(5, 3, dtype=torch.float64, generator=rng()), torch.ones(5, 2, dtype=torch.float64)


def rational_loss(w):
    out = Q(1)
    for v in w:
        out *= Q(float(v))
    return sum((Q(float(y)) - out * Q(float(x))) ** 2 for x, y in zip(X, Y, strict=True)) / (2 * len(X))


def moment():
    assert chain.forward_moment(2, depth=3, tau=2) == (Q(2**2) / 3) ** 3


def erlang_median():
    for depth in (2, 5000):
        with mpmath.workdps(40):
            below = mpmath.gammainc(depth, 0, mpmath.mpf(float(chain.erlang_median(depth))), regularized=True)
        assert abs(below - 0.5) < 1e-9


def at_tau_e():
    assert abs(chain.median_forward(depth=10**9, tau=np.e, log=True) - 1 / 3) < 1e-6


def sampling():
    sample = chain.sample_log_forward(depth=3, tau=2.0, size=4000, rng=np.random.default_rng(0))
    assert stats.kstest(3 * np.log(2) - sample, lambda t: 1 - np.exp(-t) * (1 + t + t**2 / 2)).pvalue > 0.01


def chain_gradient():
    e = np.eye(3)
    exact = [float(rational_loss(W + e[k]) - rational_loss(W - e[k])) / 2 for k in range(3)]
    np.testing.assert_allclose(chain.gradient(W, x=X, y=Y), exact, rtol=1e-12)


def chain_hessian():
    e = np.eye(3)
    signs = [(s, t) for s in (1, -1) for t in (1, -1)]
    exact = float(sum(s * t * rational_loss(W + s * e[0] + t * e[2]) for s, t in signs)) / 4
    np.testing.assert_allclose(chain.hessian(W, x=X, y=Y)[0, 2], exact, rtol=1e-12)


def log_magnitudes():
    h = chain.hessian(W, x=X, y=Y)
    off = np.abs(h[~np.eye(3, dtype=bool)]).mean()
    np.testing.assert_allclose(chain.log_magnitudes(W, x=X, y=Y).off_diagonal, np.log(off), atol=1e-12)


def uniform_variance():
    w = he(8).sample(400, 100, generator=rng())
    assert abs(w.square().mean() * 4 - 1) < 4 * (0.8 / w.numel()) ** 0.5


def haar():
    w = initialization.orthogonal(3).sample(2000, 3, 3, generator=rng())
    corner = w[:, 0, 0]
    assert abs(corner.mean()) < 4 * corner.std() / 2000**0.5


def network():
    net, x, _ = small_net()
    a, b, *hidden = (m[1].numpy() for m in (net.a, net.b, *net.hidden))
    h = np.maximum(a @ x.numpy().T, 0)
    for w in hidden:
        h = np.maximum(w @ h, 0)
    np.testing.assert_allclose(net(x)[1], (b @ h).T, rtol=1e-12, atol=1e-14)


def columns():
    net, x, y = small_net("linear")
    step, theta = 1e-3, torch.cat([w.flatten(1) for w in net.hidden], dim=1)

    def losses(i, j):
        moved = theta.clone()
        moved[:, 1] += i * step
        moved[:, 6] += j * step
        return MLP(net.a, tuple(moved.reshape(3, 2, 2, 2).unbind(1)), net.b, "linear").losses(x, y)

    difference = (losses(1, 1) - losses(1, -1) - losses(-1, 1) + losses(-1, -1)) / (4 * step**2)
    column = curvature.hessian_columns(net, x, y, [1])[0]
    torch.testing.assert_close(column[:, 6], difference, rtol=1e-5, atol=1e-7)


def blocks():
    net, x, y = small_net("linear")
    h = curvature.hessian(net, x, y).abs()
    own = (h[:, :4, :4].mean(dim=(1, 2)) + h[:, 4:, 4:].mean(dim=(1, 2))) / 2
    torch.testing.assert_close(curvature.magnitudes(net, x, y, columns=8).diagonal, own)


def halved_off_diagonal(original):
    def hessian(w, *, x, y):
        h, (m_xx, m_xy) = original(w, x=x, y=y), chain._moments(x, y)
        product = np.prod(w)
        wrong = h * (m_xx * product - m_xy) / (2 * m_xx * product - m_xy)
        return np.where(np.eye(len(w), dtype=bool), h, wrong)

    return hessian


def without_last_gate(self, x):
    phi = networks.ACTIVATIONS[self.activation]
    h = phi(self.a @ x.T)
    for w in self.hidden[:-1]:
        h = phi(w @ h)
    return (self.b @ self.hidden[-1] @ h).mT


def raw_qr(normal):
    q, _ = torch.linalg.qr(normal)
    return q


def column_of_transposed_layers(original):
    def hessian_columns(net, x, y, columns):
        size = net.width**2
        return original(net, x, y, [(net.depth - 1 - c // size) * size + c % size for c in columns])

    return hessian_columns


MUTANTS = {
    "a moment of the order two above": (
        moment,
        chain,
        "forward_moment",
        lambda f: lambda order, *, depth, tau: (Q(tau) ** order / (order + 2)) ** depth,
    ),
    "a median off by 1e-6": (erlang_median, chain, "_erlang_median_excess", lambda f: lambda depth: f(depth) + 1e-6),
    "a median that is the mean": (
        erlang_median,
        chain,
        "_erlang_median_excess",
        lambda f: lambda depth: np.zeros_like(np.asarray(depth, float)),
    ),
    "e rounded to six digits": (at_tau_e, chain, "E_HIGH", lambda f: 2.71828),
    "the paper's median, without the Erlang excess": (
        at_tau_e,
        chain,
        "_erlang_median_excess",
        lambda f: lambda depth: 0.0,
    ),
    "samples of one layer more": (
        sampling,
        chain,
        "sample_log_forward",
        lambda f: lambda *, depth, tau, size, rng: depth * np.log(tau) - rng.standard_gamma(depth + 1, size),
    ),
    "products that include the weight itself": (
        chain_gradient,
        chain,
        "_product_of_others",
        lambda f: lambda w: f(w) * w,
    ),
    "moments without the mean": (chain_gradient, chain, "_moments", lambda f: lambda x, y: (x @ x, x @ y)),
    "a Hessian without its factor 2": (chain_hessian, chain, "hessian", halved_off_diagonal),
    "a log-sum that ignores signs": (
        log_magnitudes,
        special,
        "logsumexp",
        lambda f: lambda a, axis, b, return_sign: f(a, axis=axis, b=np.abs(b), return_sign=return_sign),
    ),
    "tau without its 3": (
        uniform_variance,
        WeightLaw,
        "tau",
        lambda f: property(lambda self: float(self.variance) ** 0.5),
    ),
    "orthogonal matrices straight from LAPACK": (haar, initialization, "_orthonormal", lambda f: raw_qr),
    "a network without its last gate": (network, MLP, "__call__", lambda f: without_last_gate),
    "a network whose matrices act from the right": (
        network,
        MLP,
        "__call__",
        lambda f: lambda self, x: f(MLP(self.a, tuple(w.mT for w in self.hidden), self.b, self.activation), x),
    ),
    "columns of the other layer": (columns, curvature, "hessian_columns", column_of_transposed_layers),
    "block means of the other layer": (
        blocks,
        curvature,
        "_column_means",
        lambda f: lambda net, layer, column: f(net, net.depth - 1 - layer, column),
    ),
}


@pytest.mark.parametrize("check", sorted({check for check, *_ in MUTANTS.values()}, key=lambda f: f.__name__))
def test_the_check_is_green(check):
    check()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(monkeypatch, name):
    check, owner, attribute, mutate = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, mutate(getattr(owner, attribute)))
    with pytest.raises(AssertionError):
        check()
