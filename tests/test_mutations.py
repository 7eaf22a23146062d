"""A check can fail: each core formula is broken on purpose, and the small check beside it must turn red."""

import inspect
import sys
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction as Q
from pathlib import Path
from tempfile import TemporaryDirectory

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats
from scipy.integrate import solve_ivp

from vclib import chain, curvature, escape, initialization, moments, networks, normlaw, training
from vclib.initialization import WeightLaw, he
from vclib.networks import MLP, mlp

W, X, Y = np.array([0.5, -1.5, 2.0]), np.array([1.0, 2.0]), np.array([0.5, -1.0])


def rng():
    return torch.Generator().manual_seed(3)


def small_net(activation="relu", depth=2):
    net = mlp(depth=depth, width=2, inputs=3, outputs=2, law=he, activation=activation, seeds=3, generator=rng())
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


def inertia():
    for product in (-1.0, 0.2, 0.7, 2.0, 0.0):
        w = np.array([product, 1.0, 2.0, 0.5])
        eigenvalues = np.linalg.eigvalsh(chain.hessian(w, x=1.0, y=1.0))
        expected = [np.sum(eigenvalues > 1e-9), np.sum(eigenvalues < -1e-9), np.sum(np.abs(eigenvalues) <= 1e-9)]
        np.testing.assert_array_equal(chain.inertia(w, x=1.0, y=1.0), expected)


def deep_inertia():
    for product, expected in ((-1.0, (1, 3999, 0)), (0.4, (3999, 1, 0)), (0.7, (4000, 0, 0)), (2.0, (1, 3999, 0))):
        w = np.repeat([2.0, 0.5, 1.0, product], [1900, 1900, 199, 1])
        np.testing.assert_array_equal(chain.inertia(w, x=1.0, y=1.0), expected)


def flow_time():
    for w0, w1 in ((0.2, 0.9), (2.0, 1.1)):
        exact = mpmath.quad(lambda w: 1 / (w**4 - w**9), [w0, w1])
        np.testing.assert_allclose(escape.gradient_flow_time(5, w0=w0, w1=w1), float(exact), rtol=1e-10)


def rmsprop_time():
    for ratio0 in (0.0, 0.5):
        riccati = solve_ivp(lambda w, s: [2 * (1 - s[0] ** 2) - 4 / w * s[0], s[0]], (0.3, 0.9), [ratio0, 0], rtol=1e-9)
        time = escape.rmsprop_flow_time(5, w0=0.3, w1=0.9, alpha=4.0, ratio0=ratio0)
        np.testing.assert_allclose(time, riccati.y[1, -1], rtol=1e-5)


def rules():
    start = np.array([0.3, -0.4, 0.5])
    for rule, optimiser, options in (
        (escape.gradient_descent(), torch.optim.SGD, {}),
        (escape.momentum(), torch.optim.SGD, {"momentum": 0.9}),
        (escape.rmsprop(eps=0.01), torch.optim.RMSprop, {"alpha": 0.9, "eps": 0.01}),
        (escape.adam(), torch.optim.Adam, {}),
        (escape.clipped(max_norm=0.1), torch.optim.SGD, {}),
    ):
        w = torch.tensor(start, requires_grad=True)
        optim = optimiser([w], lr=0.1, **options)
        for _ in range(4):
            optim.zero_grad()
            (0.5 * (1 - w.prod()) ** 2).backward()
            if rule.__qualname__.startswith("clipped"):
                torch.nn.utils.clip_grad_norm_([w], 0.1)
            optim.step()
        ours = escape.descend(start, rule, step_size=0.1, iterations=4, record=[4]).w[0]
        np.testing.assert_allclose(ours, w.detach(), rtol=0, atol=1e-10)


def noise():
    start, step = np.full((3, 4), 0.5), 0.04
    gradient = chain.gradient(start, x=1.0, y=1.0)
    draw = 0.3 * np.random.default_rng(0).standard_normal((4, 3)).T
    for place, end in (
        ("gradient", start - step * np.sign(gradient + draw)),
        ("update", start - step * (np.sign(gradient) + draw)),
        ("weights", start - step * np.sign(gradient) + step**0.5 * draw),
    ):
        options = {"noise": 0.3, "noise_in": place, "rng": np.random.default_rng(0), "iterations": 1, "record": [1]}
        paths = escape.descend(start, escape.sign_descent(), step_size=step, **options)
        np.testing.assert_allclose(paths.w[0], end, rtol=1e-12)


def escape_time():
    paths = escape.descend(np.full(4, 0.5), escape.normalized(), step_size=0.02, iterations=90, record=range(90))
    assert paths.time == np.flatnonzero(chain.loss(paths.w, x=1.0, y=1.0) < 0.25)[0]


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


def mixed_difference(net, x, y, u, v, step=1e-3):
    """Second differences of the losses along u and v, (N,), for every seed."""
    theta, sizes = torch.cat([w.flatten(1) for w in net.hidden], dim=1), (net.depth, net.width, net.width)

    def losses(i, j):
        moved = (theta + i * step * u + j * step * v).unflatten(1, sizes).unbind(1)
        return MLP(net.a, tuple(moved), net.b, net.activation).losses(x, y)

    return (losses(1, 1) - losses(1, -1) - losses(-1, 1) + losses(-1, -1)) / (4 * step**2)


def columns():
    net, x, y = small_net("linear")
    unit = torch.eye(8, dtype=torch.float64)
    column = curvature.hessian_columns(net, x, y, [1])[0]
    difference = mixed_difference(net, x, y, unit[1], unit[6])
    torch.testing.assert_close(column[:, 6], difference, rtol=1e-5, atol=1e-7)


def products():
    u, v = torch.linspace(-1, 1, 8, dtype=torch.float64), torch.linspace(0.3, -0.9, 8, dtype=torch.float64) ** 2
    for activation in ("linear", "relu", "tanh"):
        net, x, y = small_net(activation)
        value = curvature.hessian_vector_products(net, x, y, v.expand(3, 1, 8))[:, 0] @ u
        torch.testing.assert_close(value, mixed_difference(net, x, y, u, v), rtol=1e-4, atol=1e-5)


def whole():
    u, v = torch.linspace(-1, 1, 12, dtype=torch.float64), torch.linspace(0.3, -0.9, 12, dtype=torch.float64) ** 2
    for activation in ("linear", "relu"):
        net, x, y = small_net(activation, depth=3)
        value = curvature.hessian(net, x, y) @ v @ u
        torch.testing.assert_close(value, mixed_difference(net, x, y, u, v), rtol=1e-4, atol=1e-5)


def blocks():
    for activation in ("linear", "tanh"):  # the whole Hessian block by block, and column by column
        net, x, y = small_net(activation)
        h = curvature.hessian(net, x, y).abs()
        own = (h[:, :4, :4].mean(dim=(1, 2)) + h[:, 4:, 4:].mean(dim=(1, 2))) / 2
        torch.testing.assert_close(curvature.magnitudes(net, x, y, columns=8).diagonal, own)


def sampling_error():
    draw = rng()
    runs = [curvature.magnitudes(*small_net("linear"), columns=6, generator=draw) for _ in range(150)]
    spread = torch.stack([run.diagonal for run in runs]).std(dim=0)
    reported = torch.stack([run.diagonal_error for run in runs]).square().mean(dim=0).sqrt()
    torch.testing.assert_close(reported, spread, rtol=0.3, atol=0)


def extremes():
    net = mlp(depth=2, width=12, inputs=3, outputs=2, law=he, activation="linear", seeds=2, generator=rng())
    _, x, y = small_net()
    exact = torch.linalg.eigvalsh(curvature.hessian(net, x, y))
    value = curvature.extreme_eigenvalues(net, x, y, largest=2, smallest=2, generator=rng())
    torch.testing.assert_close(value, exact[:, [-1, -2, 1, 0]])


def density():
    net, x, y = small_net("tanh")
    value = curvature.spectral_density(net, x, y, probes=2, steps=8, generator=rng())
    q = torch.nn.functional.normalize(curvature._random(net, (2, 8), rng()), dim=2)
    exact = (q @ curvature.hessian(net, x, y)).square().sum(dim=2)
    torch.testing.assert_close((value.weights * value.nodes**2).sum(dim=2), exact)
    torch.testing.assert_close(value.weights.sum(dim=2), torch.ones(3, 2, dtype=torch.float64))


def gates():
    signs = {"z2": 4, "z4": 2}  # of (+-1, +-1): the number of open gates is 0, 1 or 2
    assert moments.after_gate(**signs, p=Q(1, 2)) == (Q(1, 2) * 1 + Q(1, 4) * 4, 1)


def matrices():
    # weights +-2 and x = (1, 1): entries of Wx are 0 half of the time, else +-4
    assert moments.after_matrix(4, 2, width=2, sigma2=4, kappa=1) == (Q(1, 2) * 16**2 + Q(1, 4) * 32**2, 256)


def recursion():
    x, law = (Q(7), Q(4)), {"width": 3, "kappa": Q(9, 5), "p": Q(1, 2)}
    layer = moments.after_matrix(*moments.after_gate(*x, p=law["p"]), width=3, sigma2=1, kappa=law["kappa"])
    assert tuple(Q(3, 4) * moments.recursion_matrix(**law) @ x) == layer
    assert moments.fourth_moments(1, sigma2=1, z2=x[0], z4=x[1], **law) == layer


def norm_law():
    law = normlaw._Law(2, False, 0.0)  # exponential variables; a fresh one, as those of _law are kept
    for t in (0.2, 5.0):
        np.testing.assert_allclose(law.cdf(np.log(t) - law.mean, 1), -np.expm1(-t), rtol=1e-12)
        two = 1 - 2 * t**0.5 * special.k1(2 * t**0.5)
        np.testing.assert_allclose(law.cdf(np.log(t) - 2 * law.mean, 2), two, rtol=1e-12)


def lyapunov():
    np.testing.assert_allclose(normlaw.lyapunov_exponent(2, sigma2=0.5), -np.euler_gamma, rtol=1e-13)
    alive = (2 * special.psi(0.5) + special.psi(1)) / 3 + np.log(3)
    np.testing.assert_allclose(normlaw.lyapunov_exponent(2, sigma2=1.5, relu=True), alive, rtol=1e-13)


def death():
    assert normlaw.death_probability(2, 3) == 1 - 0.75**3
    np.testing.assert_allclose(normlaw.death_probability(60, 3), 3 * 2.0**-60, rtol=1e-13)


def norm_samples():
    for relu in (False, True):
        drawn = normlaw.sample(1, 1, sigma2=1.0, relu=relu, size=4000, rng=np.random.default_rng(0))
        alive = drawn[drawn > 0]
        assert abs(len(alive) - 4000 / (1 + relu)) <= 4 * 1000**0.5 * relu
        assert stats.kstest(alive, stats.chi2(1).cdf).pvalue > 0.01


def signals():
    draws, z = np.random.default_rng(0).standard_normal((3, 2, 2)), np.array([[3.0], [-1.0]])
    rest = iter(draws[..., None])
    (batch,) = normlaw.simulate(lambda shape: next(rest), lambda n: z, width=2, depth=3, sigma2=4.0, relu=True, size=1)
    for w, below, above in zip(draws, batch[:-1], batch[1:], strict=True):
        np.testing.assert_allclose(above, 2 * w @ np.maximum(below, 0), rtol=1e-12)


def labelled(activation="tanh"):
    net, x, _ = small_net(activation)
    return net, (x, torch.tensor([0, 1, 1, 0, 1]))


def ensemble(optimizers, *, activation="tanh", **options):
    net, data = labelled(activation)
    return training.train(net, optimizers, data, data, **({"batch": 5, "dtype": torch.float64} | options))


def descent_of_torch(optimiser, batches, max_norm=None, **options):
    """The weights of the second seed after these batches, by autograd."""
    net, (x, y) = labelled()
    weights = [w[1:2].clone().requires_grad_() for w in (net.a, *net.hidden, net.b)]
    optim = optimiser(weights, **options)
    for batch in batches:
        optim.zero_grad()
        outputs = MLP(weights[0], tuple(weights[1:-1]), weights[-1], net.activation)(x[batch])[0]
        torch.nn.functional.cross_entropy(outputs, y[batch]).backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(weights, max_norm)
        optim.step()
    return [w.detach()[0] for w in weights]


def assert_second_seed(net, weights):
    for w, right in zip((net.a, *net.hidden, net.b), weights, strict=True):
        np.testing.assert_allclose(w[1], right, rtol=0, atol=1e-10)


def ensemble_optimisers():
    cases = (
        (training.SGD(0.1, momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
        (training.RMSprop(0.1, beta2=0.9), torch.optim.RMSprop, {"alpha": 0.9}),
        (training.Adam(0.1), torch.optim.Adam, {}),
        (training.Adam(0.1, weight_decay=0.5), torch.optim.AdamW, {"weight_decay": 0.5}),
        (training.Clipped(0.1, max_norm=0.1), torch.optim.SGD, {"max_norm": 0.1}),
    )
    history = ensemble([rule for rule, *_ in cases], epochs=4)
    for trained, (_, optimiser, options) in zip(history.networks, cases, strict=True):
        assert_second_seed(trained, descent_of_torch(optimiser, 4 * [slice(None)], lr=0.1, **options))


def ensemble_gradients():
    x, y = torch.randn(3, 5, 3, dtype=torch.float64, generator=rng()), torch.tensor([[0, 1, 1, 0, 1]]).repeat(3, 1)
    for activation, loss in (("tanh", "cross-entropy"), ("relu", "squared error")):
        net, _ = labelled(activation)
        members = training._Members(net, 2, loss, x.device, x.dtype)
        members.run(x, y)
        for block, gradient in zip(members.blocks, members.gradients, strict=True):
            along, sides = torch.arange(1.0, block.numel() + 1, dtype=x.dtype).cos().view(block.shape), []
            for step in (1e-5, -2e-5, 1e-5):
                block += step * along
                sides.append(members.run(x, y, backward=False)[0])
            derivative = (gradient * along).sum(dim=(0, 3, 4))
            torch.testing.assert_close((sides[0] - sides[1]) / 2e-5, derivative, rtol=1e-5, atol=1e-8)


def ensemble_batches():
    """Two epochs of two batches, each in the order of the second seed."""
    orders = [np.random.default_rng([0, 1, epoch]).permutation(5) for epoch in (1, 2)]
    batches = [order[at : at + 2] for order in orders for at in (0, 2)]
    history = ensemble([training.SGD(0.1)], epochs=2, batch=2)
    assert_second_seed(history.networks[0], descent_of_torch(torch.optim.SGD, batches, lr=0.1))


@dataclass(frozen=True)
class Burst:
    """Gradient descent whose weights are infinite after its seventh step, for ever or for one batch."""

    step_size: float
    recovers: bool

    def update(self, w, g, memory, k, step_size, norm):
        w -= step_size * g
        if k == 7:
            memory["w"] = w.clone()
            w.fill_(torch.inf)
        elif k == 8 and self.recovers:
            w.copy_(memory["w"])


def ensemble_divergence():
    for recovers in (False, True):
        history, good = (ensemble([Burst(0.1, recovers)], batch=1, epochs=epochs) for epochs in (4, 1))
        assert np.all(good.diverged == 0)
        assert np.all(history.diverged == 2)
        assert np.all(np.isnan(history.train_loss[2:]))
        np.testing.assert_array_equal(history.train_loss[:2], good.train_loss)
        assert torch.equal(history.networks[0].b, good.networks[0].b)


def ensemble_checkpoint():
    rules = [training.SGD(0.1, momentum=0.9), training.Adam(0.1)]
    with TemporaryDirectory() as folder:
        for epochs in (2, 4):
            history = ensemble(rules, epochs=epochs, batch=2, checkpoint=Path(folder) / "run.pt")
    straight = ensemble(rules, epochs=4, batch=2)
    np.testing.assert_array_equal(history.train_loss, straight.train_loss)


def contour_with(factor=1.0, right=lambda right: right):
    """``factor`` multiplies the weight of the first node, ``right`` chooses the line."""

    def mutate(original):
        def contour(self, depth, side):
            nodes, weights = original(self, depth, right(side))
            return nodes, np.append(factor * weights[0], weights[1:])

        return contour

    return mutate


def halved_off_diagonal(original):
    def hessian(w, *, x, y):
        h, (m_xx, m_xy) = original(w, x=x, y=y), chain._moments(x, y)
        product = np.prod(w)
        wrong = h * (m_xx * product - m_xy) / (2 * m_xx * product - m_xy)
        return np.where(np.eye(len(w), dtype=bool), h, wrong)

    return hessian


def inertia_with(many=1, factor=lambda depth: 2 * depth - 1):
    """The closed form for chains without zero weights; the arguments put mistakes in."""

    def inertia(w, *, x, y):
        with np.errstate(over="ignore"):
            (m_xx, m_xy), depth, product = chain._moments(x, y), len(w), np.prod(w)
        if product == 0:
            return 1, 1, depth - 2
        signs = [many * np.sign(product * (m_xy - m_xx * product))] * (depth - 1)
        signs += [np.sign(product * (factor(depth) * m_xx * product - (depth - 1) * m_xy))]
        return signs.count(1), signs.count(-1), signs.count(0)

    return inertia


def zero_weights_without_the_off_diagonal(original):
    def inertia(w, *, x, y):
        positive, negative, zero = original(w, x=x, y=y)
        return (positive, negative, zero) if np.all(w) else (positive, 0, zero + negative)

    return inertia


def rmsprop_with_eps_inside(*, beta2=0.9, eps=1e-8):
    def rule(gradient, memory, k):
        memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        return gradient / np.sqrt(memory["v"] + eps)

    return rule


def adam_without_correction(*, beta1=0.9, beta2=0.999, eps=1e-8):
    def rule(gradient, memory, k):
        memory["m"] = beta1 * memory.get("m", 0.0) + (1 - beta1) * gradient
        memory["v"] = beta2 * memory.get("v", 0.0) + (1 - beta2) * gradient**2
        return memory["m"] / (np.sqrt(memory["v"]) + eps)

    return rule


def averaged_momentum(*, beta=0.9):
    def rule(gradient, memory, k):
        memory["m"] = beta * memory.get("m", 0.0) + (1 - beta) * gradient
        return memory["m"]

    return rule


def clipped(*, max_norm=1.0):
    """Clips each entry, not the norm."""
    return lambda gradient, memory, k: np.clip(gradient, -max_norm, max_norm)


def noise_scaled_by(power):
    def mutate(original):
        def descend(w, rule, *, step_size, noise=0.0, noise_in="gradient", **options):
            if noise_in == "weights":
                noise = noise * step_size**power
            return original(w, rule, step_size=step_size, noise=noise, noise_in=noise_in, **options)

        return descend

    return mutate


def noise_always_in(place):
    def mutate(original):
        return lambda *arguments, **options: original(*arguments, **(options | {"noise_in": place}))

    return mutate


def a_step_late(original):
    def descend(*arguments, **options):
        paths = original(*arguments, **options)
        return replace(paths, time=paths.time + 1)

    return descend


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


def always_open(original):
    def with_gates(state, *arguments):
        state = copy(state)
        state.gates = [gate if gate is None else torch.ones_like(gate) for gate in state.gates]
        return original(state, *arguments)

    return with_gates


def product_of_transposed_networks(original):
    def directional(state, layers):
        state, net = copy(state), state.net
        state.net = MLP(net.a, tuple(w.mT for w in net.hidden), net.b, net.activation)
        return original(state, layers)

    return directional


def changed_pass(change):
    def mutate(original):
        class Changed(original):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                change(self)

        return Changed

    return mutate


def lanczos_with(values=lambda values: values, vectors=lambda vectors: vectors):
    def mutate(original):
        def lanczos(*arguments):
            nodes, eigenvectors, done = original(*arguments)
            return values(nodes), vectors(eigenvectors), done

        return lanczos

    return mutate


def errors_of_infinite_populations(original):
    def column_means(state, columns, memory):
        own, off, *errors = original(state, columns, memory)
        share = 1 - len(columns) / (state.net.depth * state.net.width**2)
        return own, off, *(error / share**0.5 for error in errors)

    return column_means


def means_of_the_other_blocks(original):
    def means(*arguments):
        own, off, *errors = original(*arguments)
        return off, own, *errors

    return means


def rewritten(old, new):
    """The same function with one piece of its source replaced."""

    def mutate(original):
        source = inspect.getsource(original)
        if source.count(old) != 1:
            raise LookupError(f"{original.__name__} has this {source.count(old)} times: {old}")
        scope = dict(vars(sys.modules[original.__module__]))
        exec(source.replace(old, new), scope)
        return scope[original.__name__]

    return mutate


def step_size_times(factor):
    """An optimiser whose step size is multiplied by ``factor(self, k)``."""

    def mutate(original):
        def update(self, w, g, memory, k, step_size, norm):
            original(self, w, g, memory, k, step_size * factor(self, k), norm)

        return update

    return mutate


def averaged_heavy_ball(original):
    def update(self, w, g, memory, k, step_size, norm):
        original(self, w, (1 - self.momentum) * g, memory, k, step_size, norm)

    return update


def summed_squares(original):
    def update(self, w, g, memory, k, step_size, norm):
        v = memory["v"] = self.beta2 * memory.get("v", 0.0) + g * g
        w.sub_(step_size * g / (v.sqrt() + self.eps))

    return update


def decay_in_the_gradient(original):
    def update(self, w, g, memory, k, step_size, norm):
        original(replace(self, weight_decay=0.0), w, g + self.weight_decay * w, memory, k, step_size, norm)

    return update


def losses_with(change):
    def mutate(original):
        def loss(self, outputs, labels):
            losses, delta = original(self, outputs, labels)
            return losses, change(self.loss, delta, torch.zeros_like(outputs).scatter_(1, labels, 1.0))

        return loss

    return mutate


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
    "an inertia with the sign of many flipped": (inertia, chain, "inertia", lambda f: inertia_with(many=-1)),
    "an inertia with L in place of 2L - 1": (
        inertia,
        chain,
        "inertia",
        lambda f: inertia_with(factor=lambda depth: depth),
    ),
    "an inertia with positive and negative swapped": (
        inertia,
        chain,
        "inertia",
        lambda f: lambda w, *, x, y: (f(w, x=x, y=y)[1], f(w, x=x, y=y)[0], f(w, x=x, y=y)[2]),
    ),
    "an inertia that forgets a zero weight's off-diagonal": (
        inertia,
        chain,
        "inertia",
        zero_weights_without_the_off_diagonal,
    ),
    "a deep inertia without logarithms": (deep_inertia, chain, "inertia", lambda f: inertia_with()),
    "a deep residual without its factor": (
        deep_inertia,
        chain,
        "_log_residual",
        lambda f: lambda total, sign, multiple, target: f(total, sign, 1.0, target),
    ),
    "a deep residual of the other sign": (
        deep_inertia,
        chain,
        "_log_residual",
        lambda f: lambda *arguments: (f(*arguments)[0], -f(*arguments)[1]),
    ),
    "a deep residual that ignores the sign of P": (
        deep_inertia,
        chain,
        "_log_residual",
        lambda f: lambda total, sign, multiple, target: f(total, np.abs(sign), multiple, target),
    ),
    "a plateau without a target": (
        flow_time,
        escape,
        "_below_target",
        lambda f: lambda u, depth: np.zeros_like(u),
    ),
    "a descent to the target that costs nothing": (
        flow_time,
        escape,
        "_above_target",
        lambda f: lambda u, depth: np.zeros_like(u),
    ),
    "a flow of one layer more": (
        flow_time,
        escape,
        "gradient_flow_time",
        lambda f: lambda depth, **weights: f(depth + 1, **weights),
    ),
    "an RMSprop flow that forgets its start": (
        rmsprop_time,
        escape,
        "rmsprop_flow_time",
        lambda f: lambda depth, *, ratio0, **others: f(depth, ratio0=0.0, **others),
    ),
    "an RMSprop flow of one layer more": (
        rmsprop_time,
        escape,
        "rmsprop_flow_time",
        lambda f: lambda depth, **others: f(depth + 1, **others),
    ),
    "an RMSprop flow whose alpha is its half": (
        rmsprop_time,
        escape,
        "rmsprop_flow_time",
        lambda f: lambda depth, *, alpha, **others: f(depth, alpha=alpha / 2, **others),
    ),
    "RMSprop with eps inside the root": (rules, escape, "rmsprop", lambda f: rmsprop_with_eps_inside),
    "Adam without bias correction": (rules, escape, "adam", lambda f: adam_without_correction),
    "momentum as an average": (rules, escape, "momentum", lambda f: averaged_momentum),
    "clipping entry by entry": (rules, escape, "clipped", lambda f: clipped),
    "a path along products that include the weight itself": (
        rules,
        escape,
        "_product_and_gradient",
        lambda f: lambda w, m_xx, m_xy: (f(w, m_xx, m_xy)[0], f(w, m_xx, m_xy)[1] * w),
    ),
    "noise in the weights without the root of the step": (noise, escape, "descend", noise_scaled_by(-0.5)),
    "noise in the weights times the step": (noise, escape, "descend", noise_scaled_by(0.5)),
    "noise in the gradient only": (noise, escape, "descend", noise_always_in("gradient")),
    "an escape noticed a step late": (escape_time, escape, "descend", a_step_late),
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
        "_all_blocks",
        lambda f: lambda state, memory: ((ks, 1 - m, block) for ks, m, block in f(state, memory)),
    ),
    "column means of the other layers": (blocks, curvature, "_column_means", means_of_the_other_blocks),
    "products without gates": (products, curvature, "_gated", lambda f: lambda gate, signal: signal),
    "products of transposed networks": (products, curvature, "_directional", product_of_transposed_networks),
    "products with transposed directions": (
        products,
        curvature,
        "_directional",
        lambda f: lambda state, layers: f(state, [(part, v.transpose(1, 3)) for part, v in layers]),
    ),
    "a tanh that does not bend": (
        products,
        curvature,
        "_Pass",
        changed_pass(lambda state: setattr(state, "bend", [None] * state.net.depth)),
    ),
    "a tanh whose slope is 1 + h^2": (
        products,
        curvature,
        "_slope",
        lambda f: lambda activation, a, h: 1 + h * h if activation == "tanh" else f(activation, a, h),
    ),
    "a mean over the samples that are left": (
        whole,
        curvature,
        "_Pass",
        changed_pass(lambda state: setattr(state, "samples", state.h[0].shape[2])),
    ),
    "read-outs without gates": (whole, curvature, "_read_outs", always_open),
    "matrices between two layers without gates": (whole, curvature, "_between", always_open),
    "blocks without the residual": (
        whole,
        curvature,
        "_block",
        lambda f: lambda state, read, ks, last, between: f(state, read, ks, last, None),
    ),
    "blocks with the residual transposed": (
        whole,
        curvature,
        "_block",
        lambda f: lambda *start: f(*start[:4], start[4] if start[4] is None else start[4].transpose(1, 4)),
    ),
    "errors of infinite populations": (sampling_error, curvature, "_column_means", errors_of_infinite_populations),
    "extremes one place further in": (extremes, curvature, "_lanczos", lanczos_with(lambda v: v.roll(1, dims=2))),
    "extremes of the opposite sign": (extremes, curvature, "_lanczos", lanczos_with(torch.neg)),
    "weights from first columns": (density, curvature, "_lanczos", lanczos_with(vectors=lambda v: v.mT)),
    "weights that are not squared": (density, curvature, "_lanczos", lanczos_with(vectors=lambda v: v.abs().sqrt())),
    "a basis that is not orthogonal": (
        density,
        curvature,
        "_orthogonal",
        lambda f: lambda w, basis: (w, f(w, basis)[1]),
    ),
    "gates that open all together": (gates, moments, "after_gate", lambda f: lambda z2, z4, *, p: (p * z2, p * z4)),
    "gates that open once too often": (gates, moments, "after_gate", lambda f: lambda z2, z4, *, p: f(z2, z4, p=p**2)),
    "matrices that are always Gaussian": (
        matrices,
        moments,
        "after_matrix",
        lambda f: lambda x2, x4, **law: f(x2, x4, **(law | {"kappa": 3})),
    ),
    "matrices whose variance is not squared": (
        matrices,
        moments,
        "after_matrix",
        lambda f: lambda x2, x4, *, sigma2, **law: (value / sigma2 for value in f(x2, x4, sigma2=sigma2, **law)),
    ),
    "a recursion that acts from the right": (
        recursion,
        moments,
        "recursion_matrix",
        lambda f: lambda **law: f(**law).T,
    ),
    "matrices before gates": (
        recursion,
        moments,
        "fourth_moments",
        lambda f: lambda depth, *, p, z2, z4, **law: moments.after_gate(*moments.after_matrix(z2, z4, **law), p=p),
    ),
    "fourth moments of one layer more": (
        recursion,
        moments,
        "fourth_moments",
        lambda f: lambda depth, **law: f(depth + 1, **law),
    ),
    "a contour whose first node counts twice": (norm_law, normlaw._Law, "contour", contour_with(factor=2)),
    "a contour on the wrong side of the pole": (
        norm_law,
        normlaw._Law,
        "contour",
        contour_with(right=lambda right: not right),
    ),
    "Stirling's series without a term": (norm_law, normlaw, "BERNOULLI", lambda f: f * (np.arange(len(f)) > 0)),
    "a recurrence of one step too few": (norm_law, normlaw, "SHIFT", lambda f: 1),
    "a Lyapunov exponent of the norm, not of its square": (
        lyapunov,
        normlaw,
        "lyapunov_exponent",
        lambda f: lambda width, **law: f(width, **law) / 2,
    ),
    "a Lyapunov exponent that is the logarithm of the mean": (
        lyapunov,
        normlaw,
        "lyapunov_exponent",
        lambda f: lambda width, *, sigma2, relu=False: np.log(width * sigma2 / (1 + relu)),
    ),
    "a Lyapunov exponent of open networks": (
        lyapunov,
        normlaw,
        "lyapunov_exponent",
        lambda f: lambda width, *, sigma2, relu=False: f(width, sigma2=sigma2),
    ),
    "a network that dies in all layers at once": (
        death,
        normlaw,
        "death_probability",
        lambda f: lambda width, depth: 0.5 ** (width * depth),
    ),
    "a death that rounds to never": (
        death,
        normlaw,
        "death_probability",
        lambda f: lambda width, depth: 1 - (1 - 0.5**width) ** depth,
    ),
    "samples of chi-squares that are not halved": (
        norm_samples,
        normlaw,
        "_half_chi_squares",
        lambda f: lambda *arguments: 2 * f(*arguments),
    ),
    "samples whose gates are always open": (
        norm_samples,
        normlaw,
        "_half_chi_squares",
        lambda f: lambda width, count, relu, rng: f(width, count, False, rng),
    ),
    "samples of one layer more than asked": (
        norm_samples,
        normlaw,
        "sample",
        lambda f: lambda width, depth, **law: f(width, depth + 1, **law),
    ),
    "signals of transposed matrices": (
        signals,
        normlaw,
        "simulate",
        lambda f: lambda draw, z, **law: f(lambda shape: draw(shape).swapaxes(0, 1), z, **law),
    ),
    "signals without gates": (
        signals,
        normlaw,
        "simulate",
        lambda f: lambda draw, z, **law: f(draw, z, **(law | {"relu": False})),
    ),
    "weights scaled by the variance": (
        signals,
        normlaw,
        "simulate",
        lambda f: lambda draw, z, *, sigma2, **law: f(draw, z, sigma2=sigma2**2, **law),
    ),
    "an ensemble's momentum that averages": (ensemble_optimisers, training.SGD, "update", averaged_heavy_ball),
    "an ensemble's running size that sums": (ensemble_optimisers, training.RMSprop, "update", summed_squares),
    "an ensemble's Adam without the first correction": (
        ensemble_optimisers,
        training.Adam,
        "update",
        step_size_times(lambda self, k: 1 - self.beta1**k),
    ),
    "an ensemble's Adam without the second correction": (
        ensemble_optimisers,
        training.Adam,
        "update",
        step_size_times(lambda self, k: (1 - self.beta2**k) ** -0.5),
    ),
    "an ensemble's Adam whose first step is its second": (
        ensemble_optimisers,
        training._Group,
        "step",
        lambda f: lambda self, k: f(self, k + 1),
    ),
    "weight decay in the gradient": (ensemble_optimisers, training.Adam, "update", decay_in_the_gradient),
    "clipping by the norm of the read-in": (
        ensemble_optimisers,
        training,
        "_norm",
        lambda f: lambda gradients, *columns: f(gradients[:1], *columns),
    ),
    "clipping by the square of the norm": (
        ensemble_optimisers,
        training,
        "_norm",
        lambda f: lambda *arguments: f(*arguments) ** 2,
    ),
    "a softmax from which no target is subtracted": (
        ensemble_gradients,
        training._Members,
        "_loss",
        losses_with(lambda loss, delta, one_hot: delta + one_hot if loss == "cross-entropy" else delta),
    ),
    "the gradient of twice the squared error": (
        ensemble_gradients,
        training._Members,
        "_loss",
        losses_with(lambda loss, delta, one_hot: 2 * delta if loss == "squared error" else delta),
    ),
    "a gradient through tanh with h in place of its square": (
        ensemble_gradients,
        training._Members,
        "_through",
        lambda f: lambda self, delta, h: delta.mul_(1 - h) if self.activation == "tanh" else f(self, delta, h),
    ),
    "a gradient through closed gates": (
        ensemble_gradients,
        training._Members,
        "_through",
        lambda f: lambda self, delta, h: delta if self.activation == "relu" else f(self, delta, h),
    ),
    "a read-in that sees the samples of the first seed": (
        ensemble_gradients,
        training._Members,
        "_backward",
        lambda f: lambda self, x, delta: f(self, x[:1].expand(x.shape), delta),
    ),
    "the same order of the samples in every epoch": (
        ensemble_batches,
        training,
        "_orders",
        lambda f: lambda seed, seeds, epoch, n: f(seed, seeds, 1, n),
    ),
    "the same order of the samples for every seed": (
        ensemble_batches,
        training,
        "_orders",
        lambda f: lambda seed, seeds, epoch, n: np.repeat(f(seed, 1, epoch, n), seeds, axis=0),
    ),
    "diverged members that stay where they are": (
        ensemble_divergence,
        training,
        "train",
        rewritten("block[:, s, c] = old[:, s, c]", "pass"),
    ),
    "diverged members set back to the last step": (
        ensemble_divergence,
        training,
        "train",
        rewritten("before = [block.clone() for block", "before = [block for block"),
    ),
    "a divergence that the next batch makes good": (
        ensemble_divergence,
        training,
        "train",
        rewritten("finite &= losses.isfinite()", "finite = losses.isfinite()"),
    ),
    "a divergence that is not reported": (
        ensemble_divergence,
        training._Members,
        "run",
        lambda f: lambda self, x, y, **options: tuple(v.nan_to_num() for v in f(self, x, y, **options)),
    ),
    "a checkpoint that forgets the momentum": (
        ensemble_checkpoint,
        training,
        "_resume",
        rewritten("group.remember(memories)", "pass"),
    ),
    "a checkpoint that counts its epoch twice": (
        ensemble_checkpoint,
        training,
        "_resume",
        rewritten("return epoch, seconds", "return epoch - 1, seconds"),
    ),
}


@pytest.mark.parametrize("check", sorted({check for check, *_ in MUTANTS.values()}, key=lambda f: f.__name__))
def test_the_check_is_green(check):
    check()


def test_the_closed_form_without_mistakes_is_green(monkeypatch):
    monkeypatch.setattr(chain, "inertia", inertia_with())
    inertia()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(monkeypatch, name):
    check, owner, attribute, mutate = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, mutate(getattr(owner, attribute)))
    with pytest.raises(AssertionError):
        check()
