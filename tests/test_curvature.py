"""Curvature, held against torch.func, 60-digit differences, closed forms, numpy and scipy."""

import warnings
import weakref
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vclib import chain, curvature
from vclib.initialization import he, lecun, xavier
from vclib.networks import MLP, StrippedResNet, fcn, mlp, stripped_resnet

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func
modest = settings(deadline=None, max_examples=40, derandomize=True)
names = ["linear", "relu", "tanh"]
every = pytest.mark.parametrize("activation", names)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def case(activation="relu", *, depth=3, width=3, seeds=2, n=4, inputs=4, outputs=2, rank=4, seed=6, law=None):
    law = law or (he if activation == "relu" else xavier)
    sizes = {"depth": depth, "width": width, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    net = mlp(**sizes, law=law, activation=activation, generator=rng(seed))
    x = gaussian(n, min(rank, inputs), seed=seed + 100) @ gaussian(min(rank, inputs), inputs, seed=seed + 200)
    return net, x, gaussian(n, outputs, seed=seed + 300)


def weights(net):
    return sum(w[0].numel() for w in net.hidden)


def with_matrices(net, change):
    return MLP(change(net.a), tuple(change(w) for w in net.hidden), change(net.b), net.activation)


def one_seed(net, seed):
    return with_matrices(net, lambda w: w[seed : seed + 1])


def assert_near(value, expected, tolerance=1e-11):
    """Equal up to ``tolerance`` times the largest entry of a seed (first axis)."""
    assert value.shape == expected.shape
    assert value.dtype == expected.dtype
    size = expected.nan_to_num().abs().flatten(1).amax(dim=1).view(-1, *[1] * (expected.ndim - 1))
    assert torch.equal(value.isnan(), expected.isnan())
    assert torch.all((value - expected).nan_to_num().abs() <= tolerance * size)


def oracle(net, x, y):
    """torch.func on a loss written without vclib: gradients (seeds, N) and Hessians (seeds, N, N)."""
    act = {"linear": lambda a: a, "relu": lambda a: a.clamp(min=0), "tanh": torch.tanh}[net.activation]

    def loss(theta, a, b):
        h = act(a @ x.T)
        for w in theta.reshape(len(net.hidden), len(a), len(a)):
            h = act(w @ h)
        return ((y.T - b @ h) ** 2).sum() / (2 * len(x))

    theta = torch.cat([w.flatten(1) for w in net.hidden], dim=1)
    every_seed = list(zip(theta, net.a, net.b, strict=True))
    gradients, hessians = torch.func.grad(loss), torch.func.hessian(loss)
    return torch.stack([gradients(*s) for s in every_seed]), torch.stack([hessians(*s) for s in every_seed])


def direct_means(h, depth):
    blocks = h.abs().unflatten(2, (depth, -1)).unflatten(1, (depth, -1)).mean(dim=(2, 4))
    own = torch.diagonal(blocks, dim1=1, dim2=2)
    return own.mean(dim=1), (blocks.sum(dim=(1, 2)) - own.sum(dim=1)) / torch.tensor(depth * (depth - 1.0))


# ---- oracles for derivatives

SIZES = {
    "plain": {},
    "depth one": {"depth": 1},
    "width one": {"width": 1, "depth": 2, "seed": 55},
    "one sample": {"width": 2, "depth": 5, "n": 1},
    "as many samples as units": {"n": 3},
    "many samples": {"n": 20},
    "many samples of rank one": {"n": 20, "rank": 1},
    "many samples of one input": {"n": 7, "inputs": 1},
    "one output": {"outputs": 1, "n": 9},
    "more outputs than units": {"outputs": 5, "n": 9},
}


@every
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_everything_equals_torch_func(activation, sizes):
    net, x, y = case(activation, **sizes)
    gradient, h = oracle(net, x, y)
    assert torch.all(h.abs().amax(dim=(1, 2)) > 0)
    depth, total = net.depth, weights(net)
    assert_near(curvature.gradient_norms(net, x, y), gradient.unflatten(1, (depth, -1)).norm(dim=2))
    assert_near(curvature.hessian(net, x, y), h)
    assert_near(curvature.hessian_columns(net, x, y, list(range(total))).movedim(0, 2), h)
    v = gaussian(len(h), 5, total)
    assert_near(curvature.hessian_vector_products(net, x, y, v), v @ h)
    assert_near(curvature.hessian_vector_products(net, x, y, v[:, :1]), v[:, :1] @ h)
    size = net.width**2
    for k, m in product(range(depth), repeat=2):
        part = h[:, k * size : (k + 1) * size, m * size : (m + 1) * size]
        scale = 1e-11 * h.abs().max()
        torch.testing.assert_close(curvature.hessian_block(net, x, y, k + 1, m + 1), part, rtol=0, atol=scale)
    measured = curvature.magnitudes(net, x, y)
    own, off = direct_means(h, depth)
    for value, expected in zip(
        (measured.diagonal, measured.off_diagonal, measured.gradient),
        (own, off, gradient.unflatten(1, (depth, -1)).norm(dim=2).mean(dim=1)),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0, equal_nan=True)


@every
def test_differences_in_sixty_digits(activation):
    """Second differences with step 1e-15: as good as exact, and no autograd."""
    net, x, y = case(activation, width=2, n=3, inputs=2, seeds=1)
    act = {"linear": lambda a: a, "relu": lambda a: max(a, mp.zero), "tanh": mp.tanh}[activation]
    a, b, *hidden = ([[mp.mpf(v) for v in row] for row in m[0].tolist()] for m in (net.a, net.b, *net.hidden))
    step, total = mp.mpf("1e-15"), weights(net)

    def times(w, h):
        return [mp.fdot(row, h) for row in w]

    def loss(*moves):
        theta = [v for w in hidden for row in w for v in row]
        for place, sign in moves:
            theta[place] += sign * step
        result = mp.zero
        for sample, target in zip(x.tolist(), y.tolist(), strict=True):
            h = [act(v) for v in times(a, sample)]
            for k in range(0, total, 4):
                h = [act(v) for v in times([theta[k : k + 2], theta[k + 2 : k + 4]], h)]
            result += mp.fsum((t - v) ** 2 for t, v in zip(target, times(b, h), strict=True))
        return result / (2 * len(x))

    with mp.workdps(60):
        gradient = [(loss((i, 1)) - loss((i, -1))) / (2 * step) for i in range(total)]
        signs = list(product((1, -1), repeat=2))
        h = np.zeros((total, total))
        for i, j in product(range(total), repeat=2):
            if i <= j:
                h[i, j] = h[j, i] = mp.fsum(s * t * loss((i, s), (j, t)) for s, t in signs) / (4 * step**2)
    norms = np.linalg.norm(np.array(gradient, float).reshape(net.depth, 4), axis=1)
    assert np.abs(h).max() > 0.01
    np.testing.assert_allclose(curvature.gradient_norms(net, x, y)[0], norms, rtol=1e-12)
    np.testing.assert_allclose(curvature.hessian(net, x, y)[0], h, rtol=0, atol=1e-13 * np.abs(h).max())


def test_width_one_is_the_chain():
    depth, w = 6, np.random.default_rng(0).uniform(-1.5, 1.5, (3, 6))
    w[1, 2] = 0.0
    x, y = np.array([1.0, -0.5, 2.0]), np.array([0.3, 1.0, -1.0])
    one = torch.ones(3, 1, 1, dtype=torch.float64)
    net = MLP(one, tuple(torch.tensor(w[:, k]).reshape(3, 1, 1) for k in range(depth)), one, "linear")
    data = torch.tensor(x)[:, None], torch.tensor(y)[:, None]
    close = {"rtol": 1e-12, "atol": 1e-15}
    np.testing.assert_allclose(net.losses(*data), chain.loss(w, x=x, y=y), **close)
    np.testing.assert_allclose(curvature.gradient_norms(net, *data), np.abs(chain.gradient(w, x=x, y=y)), **close)
    exact, eye = chain.hessian(w, x=x, y=y), np.eye(depth, dtype=bool)
    np.testing.assert_allclose(curvature.hessian(net, *data), exact, **close)
    for columns in (None, depth):
        measured = curvature.magnitudes(net, *data, columns=columns)
        np.testing.assert_allclose(measured.diagonal, np.abs(exact[:, eye]).mean(axis=1), **close)
        np.testing.assert_allclose(measured.off_diagonal, np.abs(exact[:, ~eye]).mean(axis=1), **close)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_blocks_are_the_papers_kronecker_products(activation):
    """Equations 56 and 74 to 76 for one sample, the gates folded into the matrices that they follow."""
    net, x, y = case(activation, width=4, n=1, seeds=4, seed=7)
    h, norms, size = curvature.hessian(net, x, y).numpy(), curvature.gradient_norms(net, x, y), net.width**2
    for s in range(4):
        a, b, *w = (m[s].numpy() for m in (net.a, net.b, *net.hidden))

        def gate(v):
            return np.diag((v > 0).astype(float)) if activation == "relu" else np.eye(len(v))

        before = [gate(a @ x[0].numpy()) @ a @ x[0].numpy()]  # what enters W^k, gate of the layer below included
        gates = []
        for matrix in w:
            gates.append(gate(matrix @ before[-1]))
            before.append(gates[-1] @ matrix @ before[-1])
        after = [b @ gates[-1]]  # what W^k's output meets on its way to the network's output
        for matrix, below in zip(w[:0:-1], gates[-2::-1], strict=True):
            after.insert(0, after[0] @ matrix @ below)
        residual = b @ before[-1] - y[0].numpy()
        blocks = h[s].reshape(net.depth, size, net.depth, size).swapaxes(1, 2)
        for k in range(net.depth):
            gradient = np.outer(after[k].T @ residual, before[k])
            assert float(norms[s, k]) == pytest.approx(np.linalg.norm(gradient), rel=1e-12, abs=1e-14)
            diagonal = np.kron(after[k].T @ after[k], np.outer(before[k], before[k]))
            np.testing.assert_allclose(blocks[k, k], diagonal, rtol=1e-10, atol=1e-13)
            between = gates[k]  # from W^k's output to W^m's input
            for m in range(k + 1, net.depth):
                output = np.kron(after[k].T @ after[m], np.outer(before[k], before[m]))
                error = np.einsum("m,ni,j->ijmn", after[m].T @ residual, between, before[k]).reshape(size, size)
                np.testing.assert_allclose(blocks[k, m], output + error, rtol=1e-10, atol=1e-13)
                between = gates[m] @ w[m] @ between


# ---- properties


@modest
@given(st.sampled_from(names), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 10**6))
def test_products_are_linear_and_symmetric(activation, depth, width, n, seed):
    net, x, y = case(activation, depth=depth, width=width, n=n, seed=seed)
    u, v = gaussian(2, 2, 1, weights(net), seed=seed)
    products = curvature.hessian_vector_products(net, x, y, torch.cat([u, v, 2 * u - 3 * v], dim=1))
    scale = 1e-12 * (1 + products.abs().max())
    torch.testing.assert_close(products[:, 2], 2 * products[:, 0] - 3 * products[:, 1], rtol=0, atol=scale)
    torch.testing.assert_close((v * products[:, :1]).sum(2), (u * products[:, 1:2]).sum(2), rtol=0, atol=10 * scale)


def stacked(result):
    return torch.stack(list(vars(result).values()), dim=1)


QUANTITIES = {  # each a function of a network, data, a generator and a budget; what it returns has the seeds first
    "norms": lambda net, x, y, draw, memory: curvature.gradient_norms(net, x, y),
    "products": lambda net, x, y, draw, memory: curvature.hessian_vector_products(
        net, x, y, torch.linspace(-1, 1, weights(net)).expand(len(net.a), 3, -1), memory=memory
    ),
    "columns": lambda net, x, y, draw, memory: curvature.hessian_columns(
        net, x, y, [weights(net) // 3, 0, weights(net) // 3 - 1, weights(net) - 1], memory=memory
    ).movedim(0, 1),
    "block": lambda net, x, y, draw, memory: curvature.hessian_block(net, x, y, 1, 2),
    "hessian": lambda net, x, y, draw, memory: curvature.hessian(
        net, x, y, memory=max(memory, 8 * len(net.a) * weights(net) ** 2)
    ),
    "magnitudes": lambda net, x, y, draw, memory: stacked(curvature.magnitudes(net, x, y, memory=memory)),
    "drawn magnitudes": lambda net, x, y, draw, memory: stacked(
        curvature.magnitudes(net, x, y, columns=9, generator=rng(), memory=memory)
    ),
    "eigenvalues": lambda net, x, y, draw, memory: curvature.extreme_eigenvalues(
        net, x, y, largest=2, smallest=2, generator=draw, memory=max(memory, 400_000), tolerance=1e-14
    ),
    "density": lambda net, x, y, draw, memory: stacked(
        curvature.spectral_density(net, x, y, probes=3, steps=6, generator=draw, memory=memory)
    ),
}
all_quantities = pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)


@every
@all_quantities
def test_seeds_together_equal_seeds_one_by_one(activation, quantity):
    net, x, y = case(activation, depth=2, width=12, seeds=3, n=15)
    draw = rng(5)
    one_by_one = torch.cat([quantity(one_seed(net, seed), x, y, draw, 2**30) for seed in range(3)])
    assert_near(quantity(net, x, y, rng(5), 2**30), one_by_one)


@every
@all_quantities
@pytest.mark.parametrize("memory", [1, 10_000, 200_000])
def test_the_budget_changes_no_result(activation, quantity, memory):
    net, x, y = case(activation, depth=2, width=12, seeds=3, n=15)
    assert_near(quantity(net, x, y, rng(5), memory), quantity(net, x, y, rng(5), 2**30))


@every
@all_quantities
def test_samples_that_come_twice_change_nothing(activation, quantity):
    net, x, y = case(activation, depth=2, width=12, n=15)
    order = torch.randperm(30, generator=rng())
    twice = quantity(net, x.repeat(2, 1)[order], y.repeat(2, 1)[order], rng(5), 2**30)
    assert_near(twice, quantity(net, x, y, rng(5), 2**30), tolerance=1e-10)


@every
@all_quantities
def test_measuring_leaves_its_inputs_alone(activation, quantity):
    net, x, y = case(activation, depth=2, width=12)
    inputs = (x, y, net.a, *net.hidden, net.b)
    before, expected = [w.clone() for w in inputs], quantity(net, x, y, rng(5), 2**30)
    for w in net.hidden:
        w.requires_grad_()
    assert torch.equal(quantity(net, x, y, rng(5), 2**30).detach(), expected)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(w.grad is None for w in net.hidden)


@all_quantities
def test_a_dead_network_is_flat(quantity):
    net, x, y = case("relu", depth=2, width=12)
    dead = MLP(-net.a.abs(), net.hidden, net.b, "relu")
    flat = quantity(dead, x.abs(), y, rng(), 2**30)
    if quantity is QUANTITIES["density"]:
        assert_near(flat[:, 1].sum(dim=2), torch.ones(2, 3, dtype=torch.float64))
        flat = flat[:, 0]
    assert torch.equal(flat, torch.zeros_like(flat))


@all_quantities
def test_targets_that_do_not_fit_raise(quantity):
    net, x, y = case("linear", depth=2, width=12)
    for targets in (y[:, :1], y[:3], y.T):
        with pytest.raises(ValueError, match=r"Targets for these inputs have shape \(4, 2\)"):
            quantity(net, x, targets, rng(), 2**30)


@all_quantities
@pytest.mark.parametrize("kind", ["zero", "uniform"])
def test_networks_with_biases_raise(quantity, kind):
    _, x, y = case("linear", depth=2, width=12)
    sizes = {"depth": 2, "width": 12, "inputs": 4, "outputs": 2, "seeds": 2}
    net = mlp(**sizes, law=he, activation="linear", biases=kind, generator=rng())
    with pytest.raises(ValueError, match=r"^Curvature is measured on networks without biases\.$"):
        quantity(net, x, y, rng(), 2**30)


def convolutional(**options):
    sizes = {"depth": 4, "channels": 3, "inputs": 2, "outputs": 2, "law": he, "activation": "relu", "seeds": 2}
    net = fcn(**(sizes | options), generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, 2, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return net, x, x.flip(0)


@pytest.mark.parametrize("options", [{}, {"padding": "circular"}, {"batch_norm": True, "skip": 3}])
def test_gradients_of_convolutional_networks_are_differences_of_the_loss(options):
    net, x, y = convolutional(activation="tanh", **options)
    norms = curvature.gradient_norms(net, x, y)
    assert norms.shape == (2, 4)
    for k in range(net.depth):
        w, entries = net.hidden[k], []
        for index in np.ndindex(*w.shape[1:]):
            step = torch.zeros_like(w)
            step[(slice(None), *index)] = 1e-6
            up, down = (replace(net, hidden=(*net.hidden[:k], w + t * step, *net.hidden[k + 1 :])) for t in (1, -1))
            entries.append((up.losses(x, y) - down.losses(x, y)) / 2e-6)
        expected = torch.stack(entries).norm(dim=0)
        assert torch.allclose(norms[:, k], expected, rtol=1e-5)
    assert not any(w.requires_grad for w in net.hidden)


def of_one_pixel(activation):
    """A network with filters of one pixel and its data, and the MLP and the data that are the same."""
    net, x, y = convolutional(depth=2, channels=12, kernel=1, activation=activation)
    dense = MLP(net.a[..., 0, 0], tuple(w[..., 0, 0] for w in net.hidden), net.b[..., 0, 0], activation)
    return (net, x[..., :1, :1], y[..., :1, :1]), (dense, x[..., 0, 0], y[..., 0, 0])


def small_resnet(**options):
    """Filters of a few numbers, alive with ReLU: a block has layers of 2, 9 and 2 weights, 52 in all."""
    shapes = [(1, 2, 1), (1, 1, 3), (2, 1, 1)] * 4 + [(2, 2, 1)] * 4 * options.pop("skip", False)
    kernel = 7 if options.get("stem") == "imagenet" else 3
    a, b, *others = (
        (gaussian(2, *shape, *[k] * 2, seed=i) + 0.5) * (2 / shape[1]) ** 0.5 / k
        for i, (*shape, k) in enumerate([(2, 2, kernel), (2, 2, 1), *shapes], start=160)
    )
    choices = {"stem": "cifar", "activation": "tanh", "shortcuts": tuple(others[12:])} | options
    return StrippedResNet(a, tuple(others[:12]), b[..., 0, 0], (1, 1, 1, 1), **choices)


EVERYTHING = {"batch_norm": True, "padding": "circular"}
CONVOLUTIONAL = {
    "fcn": lambda **options: convolutional(depth=3, channels=2, **options)[0],
    "fcn with everything": lambda **options: convolutional(depth=3, channels=2, skip=2, **EVERYTHING, **options)[0],
    "resnet": small_resnet,
    "resnet with everything": lambda **options: small_resnet(stem="imagenet", skip=True, **EVERYTHING, **options),
}
all_convolutional = pytest.mark.parametrize("kind", CONVOLUTIONAL)
some_convolutional = pytest.mark.parametrize("kind", ["fcn", "resnet with everything"])
without_blocks = pytest.mark.parametrize(
    "quantity", [q for name, q in QUANTITIES.items() if name != "block"], ids=[n for n in QUANTITIES if n != "block"]
)


def convolutional_case(kind, activation="tanh"):
    images = gaussian(4, 2, 8, 8)
    return CONVOLUTIONAL[kind](activation=activation), images, images.flip(0) if "fcn" in kind else gaussian(4, 2)


def moved(net, steps):
    """The network with its hidden weights, as one vector, moved by ``steps`` (N,) for every seed."""
    parts = steps.split([w[0].numel() for w in net.hidden])
    return replace(net, hidden=tuple(w + part.view(w.shape[1:]) for w, part in zip(net.hidden, parts, strict=True)))


def autograd(net, x, y):
    leaves = [w.clone().requires_grad_() for w in net.hidden]
    loss = replace(net, hidden=tuple(leaves)).losses(x, y).sum()
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, leaves)], dim=1)


def drawn_resnet(activation="tanh"):
    sizes = {"blocks": (1, 1, 1, 1), "base": 1, "inputs": 2, "outputs": 2, "law": xavier, "seeds": 2, "skip": True}
    return stripped_resnet(**sizes, activation=activation, generator=rng()), gaussian(3, 2, 8, 8), gaussian(3, 2)


@pytest.mark.parametrize("kind", [*CONVOLUTIONAL, "drawn resnet"])
def test_columns_of_convolutional_networks_are_differences_of_the_gradient(kind):
    net, x, y = drawn_resnet() if kind == "drawn resnet" else convolutional_case(kind)
    ends = np.cumsum([0, *(w[0].numel() for w in net.hidden)])
    columns = sorted({*ends[:-1].tolist(), *(ends[1:] - 1).tolist()})  # the first and the last of each layer
    eye, step = torch.eye(weights(net), dtype=torch.float64), 1e-5
    up, down = ([autograd(moved(net, sign * step * eye[c]), x, y) for c in columns] for sign in (1, -1))
    expected = (torch.stack(up) - torch.stack(down)).movedim(0, 1) / (2 * step)
    assert_near(curvature.hessian_columns(net, x, y, columns).movedim(0, 1), expected, tolerance=1e-6)


@all_convolutional
def test_entries_of_convolutional_networks_are_second_differences_of_the_loss(kind):
    net, x, y = convolutional_case(kind)
    total, step = weights(net), 1e-4
    eye, h = torch.eye(total, dtype=torch.float64), curvature.hessian(net, x, y)
    for i, j in [(0, 0), (0, total - 1), (1, 3), (total // 2, total // 3), (total - 3, 5)]:
        value = sum(
            s * t * moved(net, step * (s * eye[i] + t * eye[j])).losses(x, y) for s, t in product((1, -1), repeat=2)
        ) / (4 * step**2)
        assert torch.all((value - h[:, i, j]).abs() < 1e-4 * h.abs().amax(dim=(1, 2)))


@all_convolutional
@pytest.mark.parametrize("activation", ["linear", "relu", "selu", "sigmoid"])
def test_convolutional_hessians_are_symmetric_and_products_are_theirs(kind, activation):
    net, x, y = convolutional_case(kind, activation)
    h, v = curvature.hessian(net, x, y), gaussian(2, 3, weights(net))
    assert torch.all(h.abs().amax(dim=(1, 2)) > 0)
    assert_near(h.mT, h)
    assert_near(curvature.hessian_vector_products(net, x, y, v), v @ h)


@every
@without_blocks
def test_networks_of_one_pixel_are_mlps(activation, quantity):
    images, dense = of_one_pixel(activation)
    assert_near(quantity(*images, rng(5), 2**30), quantity(*dense, rng(5), 2**30), tolerance=1e-9)


@some_convolutional
@without_blocks
def test_seeds_and_the_budget_change_no_convolutional_result(kind, quantity):
    net, x, y = convolutional_case(kind)
    together = quantity(net, x, y, rng(5), 2**30)
    assert_near(quantity(net, x, y, rng(5), 1), together)
    draw = rng(5)
    one_by_one = [quantity(curvature._chosen(net, slice(s, s + 1)), x, y, draw, 2**30) for s in range(2)]
    assert_near(torch.cat(one_by_one), together)


@some_convolutional
@without_blocks
def test_measuring_leaves_convolutional_networks_alone(kind, quantity):
    net, x, y = convolutional_case(kind)
    inputs = (x, y, net.a, *net.hidden, net.b, *getattr(net, "shortcuts", ()))
    before, expected = [w.clone() for w in inputs], quantity(net, x, y, rng(5), 2**30)
    for w in inputs[2:]:
        w.requires_grad_()
    value = quantity(net, x, y, rng(5), 2**30)
    assert torch.equal(value, expected)
    assert not value.requires_grad
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(inputs, before, strict=True))


@some_convolutional
@without_blocks
def test_targets_that_do_not_fit_convolutional_networks_raise(kind, quantity):
    net, x, y = convolutional_case(kind)
    right = r"\(4, 2, 8, 8\)" if "fcn" in kind else r"\(4, 2\)"
    for targets in (y[:, :1], y[:3], y[..., :1], y[None]):
        with pytest.raises(ValueError, match=f"^Targets for these inputs have shape {right}, not "):
            quantity(net, x, targets, rng(), 2**30)


def test_blocks_of_convolutional_networks_raise():
    with pytest.raises(
        ValueError,
        match=r"^Blocks are built for multilayer perceptrons; of a convolutional network, ask for columns\.$",
    ):
        curvature.hessian_block(*convolutional(), 1, 1)


@pytest.mark.parametrize("shape", [(52,), (2, 52), (1, 1, 52), (2, 1, 48), (2, 1, 1, 52)])
def test_vectors_of_another_shape_than_that_of_all_filters_raise(shape):
    with pytest.raises(ValueError, match=r"have shape \(2, m, 52\), not"):
        curvature.hessian_vector_products(*convolutional_case("resnet"), torch.zeros(shape))


@pytest.mark.parametrize("bad", [[-1], [0, 52], []])
def test_a_column_outside_the_hessian_of_all_filters_raises(bad):
    with pytest.raises(IndexError, match="from 0 to 51"):
        curvature.hessian_columns(*convolutional_case("resnet"), bad)


def test_extremes_of_convolutional_networks_equal_those_of_the_whole_hessian():
    net, x, y = convolutional(depth=2, channels=4, activation="selu")  # 288 weights: Lanczos
    exact = torch.linalg.eigvalsh(curvature.hessian(net, x, y))
    assert_near(curvature.extreme_eigenvalues(net, x, y, generator=rng()), ends(exact, 3), tolerance=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "resnet with everything"])
def test_quadrature_of_unequal_layers_is_exact_with_all_steps(kind):
    net, x, y = convolutional_case(kind)
    density = curvature.spectral_density(net, x, y, probes=2, steps=52, generator=rng())
    eigenvalues, vectors = torch.linalg.eigh(curvature.hessian(net, x, y))
    shares, scale = (probes(net, 2) @ vectors).square(), eigenvalues.abs().amax(dim=1)[:, None, None]
    exact = (shares * torch.cos(eigenvalues[:, None] / scale)).sum(dim=2)
    value = (density.weights * torch.cos(density.nodes / scale)).sum(dim=2)
    torch.testing.assert_close(value, exact, rtol=1e-10, atol=0)


def own_and_others(net):
    """Which entries of the Hessian are in diagonal blocks, (N, N)."""
    layer = torch.repeat_interleave(torch.tensor([w[0].numel() for w in net.hidden]))
    return layer[:, None] == layer


@all_convolutional
def test_magnitudes_of_unequal_layers_are_means_over_entries(kind):
    net, x, y = convolutional_case(kind)
    h, own = curvature.hessian(net, x, y).abs(), own_and_others(net)
    total = weights(net)
    drawn = torch.randperm(total, generator=rng())[:9]
    whole = curvature.magnitudes(net, x, y)
    some = curvature.magnitudes(net, x, y, columns=9, generator=rng())
    for measured, columns in ((whole, torch.arange(total)), (some, drawn)):
        part, mine = h[:, :, columns], own[:, columns]
        for value, among in ((measured.diagonal, mine), (measured.off_diagonal, ~mine)):
            torch.testing.assert_close(value, part[:, among].mean(dim=1), rtol=1e-10, atol=0)
    norms = curvature.gradient_norms(net, x, y).mean(dim=1)
    torch.testing.assert_close(whole.gradient, norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(some.gradient, norms, rtol=1e-12, atol=0)
    assert not whole.diagonal_error.any()
    assert not whole.off_diagonal_error.any()
    assert torch.all(some.diagonal_error > 0)
    assert torch.all(some.off_diagonal_error > 0)


def test_disjoint_drawings_of_columns_add_up_to_the_whole():
    net, x, y = convolutional_case("resnet")
    whole, own, state = curvature.magnitudes(net, x, y), own_and_others(net), curvature._Graph(net, x, y)
    drawings = torch.randperm(52, generator=rng()).view(4, 13)
    means = torch.stack([torch.stack(curvature._column_means(state, d.tolist(), 2**30)[:2]) for d in drawings])
    counts = torch.stack([torch.stack([own[:, d].sum(), (~own[:, d]).sum()]) for d in drawings])
    expected = torch.stack([whole.diagonal, whole.off_diagonal])
    together = (means * counts[..., None]).sum(dim=0) / counts.sum(dim=0)[:, None]
    torch.testing.assert_close(together, expected, rtol=1e-12, atol=0)


def test_the_mean_of_equal_entries_has_no_error_however_unequal_the_layers(monkeypatch):
    net, ones = small_resnet(), torch.ones(2, 13, 52, dtype=torch.float64)
    monkeypatch.setattr(curvature, "_columns", lambda state, names, memory: [(names, ones.clone())])
    found = curvature._column_means(SimpleNamespace(net=net), list(range(0, 52, 4)), 2**30)
    assert torch.equal(torch.stack(found), torch.tensor([1.0, 1.0, 0.0, 0.0]).double()[:, None].expand(4, 2))


@pytest.mark.parametrize("columns", [13, 26])
def test_the_ratio_of_sums_over_columns_has_an_honest_error(monkeypatch, columns):
    net, x, y = convolutional_case("resnet")
    h, whole = curvature.hessian(net, x, y), curvature.magnitudes(net, x, y)
    monkeypatch.setattr(curvature, "_columns", lambda state, names, memory: [(names, h[:, names])])
    permutations = [torch.randperm(52, generator=rng(s))[:columns].tolist() for s in range(600)]
    runs = torch.stack([torch.stack(curvature._column_means(SimpleNamespace(net=net), p, 2**30)) for p in permutations])
    means, errors = runs[:, :2], runs[:, 2:].square().mean(dim=0).sqrt()
    spread = means.std(dim=0)
    bias = (means.mean(dim=0) - torch.stack([whole.diagonal, whole.off_diagonal])).abs()
    assert torch.all(bias < 0.2 * spread)  # a ratio is unbiased in the limit of many columns
    torch.testing.assert_close(errors, spread, rtol=0.1, atol=0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", ["fcn", "resnet"])
def test_gradient_norms_of_tiny_float32_networks_do_not_underflow(kind, activation):
    net, x, y = convolutional_case(kind, activation)
    a, b = net.a * 1e-15, net.b * 1e-15  # squares of the gradient are below 1e-45, where float32 ends
    single = replace(net, a=a.float(), hidden=tuple(w.float() for w in net.hidden), b=b.float())
    norms = curvature.gradient_norms(single, x, y)
    assert 0 < norms.min() < norms.max() < 1e-27
    double = curvature.gradient_norms(replace(net, a=a, b=b), x, y)
    torch.testing.assert_close(norms.double(), double, rtol=1e-4, atol=0)
    tiny = curvature.gradient_norms(replace(net, a=a * 1e-105, b=b * 1e-105), x, y)
    torch.testing.assert_close(tiny, 1e-210 * double, rtol=1e-4 if activation == "tanh" else 1e-10, atol=0)
    with pytest.warns(UserWarning, match=r"Entries of the Hessian are about \S+, and float32 ends at 1e-38"):
        curvature.hessian_columns(single, x, y, [0])


def test_convolutional_curvature_needs_no_grad_mode():
    net, x, y = convolutional_case("fcn")
    expected = [QUANTITIES[name](net, x, y, rng(5), 2**30) for name in ("norms", "drawn magnitudes")]
    with torch.no_grad():
        found = [QUANTITIES[name](net, x, y, rng(5), 2**30) for name in ("norms", "drawn magnitudes")]
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other)
    assert curvature.hessian_vector_products(net, x, y, torch.zeros(2, 0, sum(curvature._sizes(net)))).shape[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_images_may_have_another_type(dtype):
    net, x, y = convolutional_case("resnet")
    x, y = (3 * x).round(), (3 * y).round()
    for quantity in (QUANTITIES["norms"], QUANTITIES["drawn magnitudes"]):
        assert_near(quantity(net, x.to(dtype), y.to(dtype), rng(5), 2**30), quantity(net, x, y, rng(5), 2**30))


# ---- vectors, columns and blocks


@pytest.mark.parametrize("shape", [(27,), (2, 27), (1, 1, 27), (2, 1, 26), (2, 1, 1, 27)])
def test_vectors_of_another_shape_raise(shape):
    with pytest.raises(ValueError, match=r"have shape \(2, m, 27\), not"):
        curvature.hessian_vector_products(*case(), torch.zeros(shape))


@every
def test_columns_come_in_the_order_asked_for_also_twice(activation):
    net, x, y = case(activation, depth=4)
    asked = [35, 9, 0, 26, 9, 9]
    picked = curvature.hessian_columns(net, x, y, asked)
    assert picked.shape == (6, 2, 36)
    assert_near(picked.movedim(0, 2), curvature.hessian(net, x, y)[:, :, asked])


@pytest.mark.parametrize("bad", [[-1], [0, 27], [100], []])
def test_a_column_outside_the_hessian_raises(bad):
    with pytest.raises(IndexError, match="from 0 to 26"):
        curvature.hessian_columns(*case(), bad)


@every
@pytest.mark.parametrize(("k", "m"), [(0, 1), (1, 0), (4, 1), (1, 4), (-1, -1)])
def test_a_block_outside_the_hessian_raises(activation, k, m):
    with pytest.raises(IndexError, match=rf"from 1 to 3; there is no block \({k}, {m}\)"):
        curvature.hessian_block(*case(activation), k, m)


@every
def test_a_hessian_beyond_the_budget_raises(activation):
    net, x, y = case(activation)
    assert curvature.hessian(net, x, y, memory=2 * 27**2 * 8).shape == (2, 27, 27)
    with pytest.raises(ValueError, match=r"The whole Hessian of 2 networks with 27 weights takes 0.0 GiB, the budget"):
        curvature.hessian(net, x, y, memory=2 * 27**2 * 8 - 1)


# ---- magnitudes


@pytest.mark.parametrize(("activation", "depth"), [*product(names, (1, 2, 4))])
@pytest.mark.parametrize("columns", [None, 36, 1000])
def test_the_whole_hessian_has_no_sampling_error(activation, depth, columns):
    measured = curvature.magnitudes(*case(activation, depth=depth), columns=columns)
    for error in (measured.diagonal_error, measured.off_diagonal_error):
        assert torch.equal(error, torch.zeros(2, dtype=torch.float64))


def test_columns_are_drawn_above_4096_weights():
    net, x, y = case("linear", depth=16, width=16, seeds=1)
    assert curvature.magnitudes(net, x, y).diagonal_error == 0
    net, x, y = case("linear", depth=17, width=16, seeds=1)
    with pytest.raises(ValueError, match="needs a generator"):
        curvature.magnitudes(net, x, y)
    drawn = curvature.magnitudes(net, x, y, generator=rng())
    assert drawn == curvature.magnitudes(net, x, y, columns=64, generator=rng())
    assert drawn.diagonal_error > 0


@every
@pytest.mark.parametrize("columns", [3, 9])
def test_sampled_columns_are_unbiased_with_an_honest_error(activation, columns):
    net, x, y = case(activation, width=2)
    exact = direct_means(curvature.hessian(net, x, y), 3)
    runs = [curvature.magnitudes(net, x, y, columns=columns, generator=rng(s)) for s in range(250)]
    for k, name in enumerate(("diagonal", "off_diagonal")):
        values = torch.stack([getattr(run, name) for run in runs])
        spread = values.std(dim=0)
        assert torch.all((values.mean(dim=0) - exact[k]).abs() < 4 * spread / 250**0.5)
        reported = torch.stack([getattr(run, name + "_error") for run in runs]).square().mean(dim=0).sqrt()
        torch.testing.assert_close(reported, spread, rtol=0.25, atol=0)


def test_the_same_generator_draws_the_same_columns():
    first, again, other = (curvature.magnitudes(*case(), columns=5, generator=rng(s)) for s in (0, 0, 1))
    assert torch.equal(first.diagonal, again.diagonal)
    assert not torch.equal(first.diagonal, other.diagonal)


@pytest.mark.parametrize("columns", [-1, 0, 1])
def test_too_few_columns_raise(columns):
    with pytest.raises(ValueError, match=f"At least 2 columns are needed for a standard error, not {columns}"):
        curvature.magnitudes(*case(), columns=columns, generator=rng())


def test_random_columns_need_a_generator():
    with pytest.raises(ValueError, match="needs a generator"):
        curvature.magnitudes(*case(), columns=5)


@every
@pytest.mark.parametrize("columns", [5, 9])
def test_depth_one_has_no_off_diagonal(activation, columns):
    measured = curvature.magnitudes(*case(activation, depth=1), columns=columns, generator=rng())
    assert torch.all(measured.off_diagonal.isnan())
    assert torch.all(measured.diagonal >= 0)
    assert measured.off_diagonal.shape == (2,)


def test_width_and_depth_one_have_one_column():
    net, x, y = case("linear", width=1, depth=1)
    measured = curvature.magnitudes(net, x, y, columns=1)
    scale = (net.b**2).sum(dim=(1, 2)) * ((net.a @ x.T) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(measured.diagonal, scale, rtol=1e-12, atol=0)
    assert torch.equal(measured.diagonal_error, torch.zeros(2, dtype=torch.float64))


# ---- extreme eigenvalues


def ends(eigenvalues, count):
    """From ascending order: the largest, largest first, then the smallest, smallest last."""
    return torch.cat([eigenvalues[:, -count:].flip(1), eigenvalues[:, :count].flip(1)], dim=1)


def repeated_eigenvalues(*, width=17, outputs=3):
    """H is B^T B ⊗ C with an orthogonal projection B^T B: every eigenvalue of C appears ``outputs`` times, then 0."""
    net, x, y = case("linear", depth=1, width=width, outputs=outputs, seeds=2, n=30, inputs=width, rank=width)
    rows = torch.linalg.qr(net.b.mT)[0].mT
    z = net.a @ x.T
    of_c = torch.linalg.eigvalsh(z @ z.mT / len(x)).repeat_interleave(outputs, dim=1)
    zeros = torch.zeros(2, width**2 - of_c.shape[1], dtype=torch.float64)
    return MLP(net.a, net.hidden, rows, "linear"), x, y, torch.cat([zeros, of_c], dim=1)


@every
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("sizes", [{"width": 12, "depth": 4}, {"width": 17, "depth": 1}, {"width": 4, "depth": 5}])
def test_extremes_equal_those_of_numpy(activation, count, sizes):
    net, x, y = case(activation, n=20, inputs=6, rank=6, **sizes)
    exact = torch.tensor(np.linalg.eigvalsh(curvature.hessian(net, x, y).numpy()))
    value = curvature.extreme_eigenvalues(net, x, y, largest=count, smallest=count, generator=rng(), tolerance=1e-9)
    assert_near(value, ends(exact, count), tolerance=1e-9)
    assert torch.all(value.diff(dim=1) <= 0)


@every
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-12])
def test_extremes_are_as_good_as_the_tolerance(activation, tolerance):
    net, x, y = case(activation, width=12, n=20)
    exact = torch.linalg.eigvalsh(curvature.hessian(net, x, y))
    found = curvature.extreme_eigenvalues(net, x, y, generator=rng(), tolerance=tolerance)
    assert_near(found, ends(exact, 3), tolerance=tolerance)


def test_extremes_equal_those_of_scipy():
    net, x, y = case("relu", width=24, depth=4, seeds=1, n=50)
    total = weights(net)

    def times(v):
        return curvature.hessian_vector_products(net, x, y, torch.tensor(v).reshape(1, 1, total)).numpy().ravel()

    operator, start = LinearOperator((total, total), matvec=times, dtype=float), gaussian(total).numpy()
    high, low = (eigsh(operator, k=3, which=end, return_eigenvectors=False, v0=start) for end in ("LA", "SA"))
    exact = torch.tensor([*sorted(high, reverse=True), *sorted(low, reverse=True)])[None]
    assert_near(curvature.extreme_eigenvalues(net, x, y, generator=rng(), tolerance=1e-12), exact, tolerance=1e-9)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_repeated_extremes_appear_as_often_as_they_should(count):
    net, x, y, exact = repeated_eigenvalues()
    value = curvature.extreme_eigenvalues(net, x, y, largest=count, smallest=count, generator=rng(), tolerance=1e-12)
    assert_near(value, ends(exact, count), tolerance=1e-9)


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize(
    "spectrum",
    [
        [5.0, 5.0, 5.0, 1.0, 0.5, -1.0, *[-2.0] * 3, *[0.0] * 21],
        [1.0, 2.0, 3.0, 4.0, 5.0] * 6,
        [1e-200] * 30,
        [0.0] * 30,
        np.linspace(-1, 1, 30).tolist(),
    ],
)
def test_lanczos_goes_on_when_the_krylov_space_is_exhausted(block, spectrum):
    spectrum = torch.tensor(spectrum, dtype=torch.float64)
    values, vectors, done = curvature._lanczos(lambda v: v * spectrum, gaussian(1, 2, block, 30), 30 // block)
    assert not done
    exact = spectrum.sort().values.expand(1, 2, 30)
    assert torch.all((values - exact).abs() <= 1e-13 * spectrum.abs().max())
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(30).double().expand(1, 2, 30, 30), rtol=0, atol=1e-12)


def test_too_few_steps_raise():
    net, x, y = case("tanh", width=12, n=20)
    with pytest.raises(RuntimeError, match="3 steps of Lanczos did not find 3 and 3 eigenvalues to 1e-06"):
        curvature.extreme_eigenvalues(net, x, y, most=3, generator=rng())


@pytest.mark.parametrize("options", [{"memory": 1}, {"most": 0}])
def test_no_step_at_all_raises(options):
    net, x, y = case("tanh", width=12, n=20)
    with pytest.raises(RuntimeError, match="0 steps of Lanczos did not find"):
        curvature.extreme_eigenvalues(net, x, y, generator=rng(), **options)


def test_a_third_of_all_eigenvalues():
    net, x, y = case("tanh", width=17, depth=1, n=20)
    exact = torch.linalg.eigvalsh(curvature.hessian(net, x, y))
    assert_near(
        curvature.extreme_eigenvalues(net, x, y, largest=100, smallest=100, generator=rng()),
        ends(exact, 100),
        tolerance=1e-9,
    )


@pytest.mark.parametrize(("largest", "smallest"), [(-1, 2), (2, -1), (0, 0), (14, 14)])
def test_a_count_out_of_range_raises(largest, smallest):
    with pytest.raises(ValueError, match=f"1 to 27 eigenvalues at both ends, not for {largest} and {smallest}"):
        curvature.extreme_eigenvalues(*case(), largest=largest, smallest=smallest, generator=rng())


@pytest.mark.parametrize(("largest", "smallest"), [(2, 0), (0, 3), (1, 4)])
def test_the_ends_are_asked_for_one_by_one(largest, smallest):
    net, x, y = case("tanh", width=12, n=20)
    values = torch.linalg.eigvalsh(curvature.hessian(net, x, y)).flip(1)
    found = curvature.extreme_eigenvalues(net, x, y, largest=largest, smallest=smallest, generator=rng())
    assert_near(found, torch.cat([values[:, :largest], values[:, values.shape[1] - smallest :]], dim=1), tolerance=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, -1e-6, float("nan")])
def test_a_tolerance_that_is_none_raises(tolerance):
    with pytest.raises(ValueError, match="The tolerance is a positive number"):
        curvature.extreme_eigenvalues(*case(), tolerance=tolerance, generator=rng())


# ---- spectral density


def probes(net, count, seed=0):
    """The unit vectors from which spectral_density starts, (seeds, count, N)."""
    return torch.nn.functional.normalize(curvature._random(net, (count, 1, weights(net)), rng(seed))[:, :, 0], dim=2)


@every
@pytest.mark.parametrize("steps", [1, 2, 5, 27])
def test_quadrature_is_exact_for_polynomials_below_degree_2_steps(activation, steps):
    net, x, y = case(activation)
    density = curvature.spectral_density(net, x, y, probes=4, steps=steps, generator=rng())
    assert density.nodes.shape == density.weights.shape == (2, 4, steps)
    assert torch.all(density.weights >= 0)
    torch.testing.assert_close(density.weights.sum(dim=2), torch.ones(2, 4).double(), rtol=0, atol=1e-13)
    eigenvalues, vectors = torch.linalg.eigh(curvature.hessian(net, x, y))
    shares = (probes(net, 4) @ vectors).square()
    scale = eigenvalues.abs().amax(dim=1)[:, None, None]
    for degree in range(min(2 * steps, 12)):
        value = (density.weights * (density.nodes / scale) ** degree).sum(dim=2)
        exact = (shares * (eigenvalues[:, None] / scale) ** degree).sum(dim=2)
        torch.testing.assert_close(value, exact, rtol=0, atol=1e-13)


@every
def test_with_all_steps_the_quadrature_is_exact_for_every_function(activation):
    for net, x, y in (case(activation), repeated_eigenvalues(width=5, outputs=2)[:3]):  # also when space is exhausted
        density = curvature.spectral_density(net, x, y, probes=3, steps=weights(net), generator=rng())
        eigenvalues, vectors = torch.linalg.eigh(curvature.hessian(net, x, y))
        shares = (probes(net, 3) @ vectors).square()
        for f in (torch.exp, torch.cos, lambda t: 1 / (4 + t**2)):
            exact = (shares * f(eigenvalues)[:, None]).sum(dim=2)
            torch.testing.assert_close((density.weights * f(density.nodes)).sum(dim=2), exact, rtol=1e-10, atol=1e-10)


@every
def test_the_mean_over_probes_has_the_moments_of_the_spectrum(activation):
    net, x, y = case(activation, width=5)
    density = curvature.spectral_density(net, x, y, probes=900, steps=4, generator=rng())
    eigenvalues = torch.linalg.eigvalsh(curvature.hessian(net, x, y))
    for degree in (1, 2, 3):
        values = (density.weights * density.nodes**degree).sum(dim=2)
        error = values.std(dim=1) / 900**0.5
        assert torch.all((values.mean(dim=1) - (eigenvalues**degree).mean(dim=1)).abs() < 4 * error)
        assert torch.all(error < 0.1 * (eigenvalues.abs() ** degree).mean(dim=1))


@pytest.mark.parametrize(("count", "steps"), [(0, 5), (-1, 5), (1, 0), (1, 28)])
def test_probes_and_steps_out_of_range_raise(count, steps):
    with pytest.raises(ValueError, match=f"at least 1 probe and 1 to 27 steps, not {count} and {steps}"):
        curvature.spectral_density(*case(), probes=count, steps=steps, generator=rng())


# ---- precision and memory


@every
@all_quantities
def test_shallow_float32_networks_agree_without_a_warning(activation, quantity):
    net, x, y = case(activation, depth=2, width=12)
    single = with_matrices(net, torch.Tensor.float)
    value = quantity(single, x, y, rng(5), 2**30)
    assert value.dtype == torch.float32
    if quantity is not QUANTITIES["density"]:  # of other random vectors
        assert_near(value, quantity(net, x, y, rng(5), 2**30).float(), tolerance=1e-4)


@every
def test_a_deep_float32_network_warns(activation):
    net, x, y = case(activation, depth=100, width=8, law=lecun, seeds=4)
    with pytest.warns(UserWarning, match="float32 ends at 1e-38: they are lost"):
        curvature.gradient_norms(with_matrices(net, torch.Tensor.float), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature.gradient_norms(net, x, y)


@every
@all_quantities
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_data_may_have_another_type(activation, quantity, dtype):
    net, x, y = case(activation, depth=2, width=12)
    x, y = (3 * x).round(), (3 * y).round()
    assert_near(quantity(net, x.to(dtype), y.to(dtype), rng(5), 2**30), quantity(net, x, y, rng(5), 2**30))


class Peak(TorchDispatchMode):
    """The most bytes that live at once in tensors made inside."""

    def __init__(self):
        super().__init__()
        self.users, self.live, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.users:
                    self.live += storage.nbytes()
                users, _ = self.users.get(storage._cdata, (0, 0))
                self.users[storage._cdata] = users + 1, storage.nbytes()
                weakref.finalize(tensor, self.drop, storage._cdata)
        self.peak = max(self.peak, self.live)
        return result

    def drop(self, storage):
        users, size = self.users.pop(storage)
        if users > 1:
            self.users[storage] = users - 1, size
        else:
            self.live -= size


def test_the_peak_is_a_peak():
    x = torch.zeros(1000, dtype=torch.float64)
    with Peak() as peak:
        for _ in range(3):
            (x + 1).view(10, 100).T.mul(2).sum()
    assert 16_000 <= peak.peak <= 16_100


@pytest.mark.parametrize(
    ("activation", "width", "columns"),
    [
        ("linear", 16, 16),
        ("relu", 16, 16),
        ("tanh", 16, 16),
        ("tanh", 6, 144),
        ("relu", 6, 144),
        ("linear", 16, 1024),
        ("relu", 16, 1024),
    ],
)
def test_magnitudes_keep_to_their_budget(activation, width, columns):
    net, x, y = case(activation, depth=4, width=width, seeds=60, n=100, outputs=10)
    peaks = []
    for memory in (2**23, 2**23, 2**30):  # the first loads what torch loads once
        with Peak() as peak:
            curvature.magnitudes(net, x, y, columns=columns, generator=rng(), memory=memory)
        peaks.append(peak.peak)
    assert peaks[1] < 2 * 2**23
    if activation != "linear":  # of which n = 100 samples become 16
        assert peaks[2] > 3 * peaks[1]


@pytest.mark.parametrize("kind", ["fcn", "resnet"])
def test_magnitudes_of_convolutional_networks_keep_to_their_budget(kind):
    net, x, y = convolutional_case(kind)
    many = [w.repeat(30, *[1] * (w.ndim - 1)) for w in (net.a, *net.hidden, net.b)]
    net, peaks = replace(net, a=many[0], hidden=tuple(many[1:-1]), b=many[-1]), []
    for memory in (2**20, 2**20, 2**30):  # the first loads what torch loads once
        with Peak() as peak:
            curvature.magnitudes(net, x, y, columns=2, generator=rng(), memory=memory)
        peaks.append(peak.peak)
    assert 2**18 < peaks[1] < 2 * 2**20
    assert peaks[2] > 3 * peaks[1]


def test_norms_of_tiny_gradients_do_not_underflow():
    net, x, y = case("tanh")
    tiny = MLP(net.a, net.hidden, net.b * 1e-170, "tanh")
    gradients = curvature.gradient_norms(MLP(net.a, net.hidden, net.b * 1e-10, "tanh"), x, y)
    torch.testing.assert_close(curvature.gradient_norms(tiny, x, y), gradients * 1e-160, rtol=1e-6, atol=0)


def test_no_sample_raises():
    net, x, y = case()
    with pytest.raises(ValueError, match="At least one sample is needed"):
        curvature.gradient_norms(net, x[:0], y[:0])
