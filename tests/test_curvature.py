"""Gradients and Hessian blocks, held against closed forms, finite differences and torch.func."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib import chain, curvature
from vclib.initialization import he, xavier
from vclib.networks import MLP, mlp

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func
modest = settings(deadline=None, max_examples=15, derandomize=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def case(activation="relu", *, depth=3, width=3, seeds=2, n=4, seed=3):
    law = he if activation == "relu" else xavier
    sizes = {"depth": depth, "width": width, "inputs": 4, "outputs": 2, "seeds": seeds}
    net = mlp(**sizes, law=law, activation=activation, generator=rng(seed))
    options = {"dtype": torch.float64, "generator": rng(seed + 100)}
    return net, torch.randn(n, 4, **options), torch.randn(n, 2, **options)


def flat(net):
    return torch.cat([w.flatten(1) for w in net.hidden], dim=1)


def rebuilt(net, theta):
    """The network with hidden weights theta (seeds, L d²)."""
    parts = theta.reshape(len(theta), net.depth, net.width, net.width).unbind(1)
    return MLP(net.a, tuple(parts), net.b, net.activation)


def independent_hessian(net, x, y, seed):
    """torch.func on a loss written without vclib."""
    d, depth = net.a.shape[1], len(net.hidden)

    def loss(theta):
        total = 0.0
        for sample, target in zip(x, y, strict=True):
            h = net.a[seed] @ sample
            for k in range(-1, depth):
                if k >= 0:
                    h = theta[k * d * d : (k + 1) * d * d].reshape(d, d) @ h
                h = torch.clamp(h, min=0) if net.activation == "relu" else h
            total = total + ((target - net.b[seed] @ h) ** 2).sum()
        return total / (2 * len(x))

    theta = flat(net)[seed]
    return torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)


def block(h, k, m, size):
    return h[..., k * size : (k + 1) * size, m * size : (m + 1) * size]


# ---- oracles


def test_width_one_is_the_chain():
    depth, w = 6, np.random.default_rng(0).uniform(-1.5, 1.5, (3, 6))
    w[1, 2] = 0.0
    x, y = np.array([1.0, -0.5, 2.0]), np.array([0.3, 1.0, -1.0])
    one = torch.ones(3, 1, 1, dtype=torch.float64)
    net = MLP(one, tuple(torch.tensor(w[:, k]).reshape(3, 1, 1) for k in range(depth)), one, "linear")
    columns = torch.tensor(x)[:, None], torch.tensor(y)[:, None]
    np.testing.assert_allclose(net.losses(*columns), chain.loss(w, x=x, y=y), rtol=1e-13)
    np.testing.assert_allclose(
        curvature.gradient_norms(net, *columns), np.abs(chain.gradient(w, x=x, y=y)), rtol=1e-12, atol=1e-15
    )
    exact = chain.hessian(w, x=x, y=y)
    np.testing.assert_allclose(curvature.hessian(net, *columns), exact, rtol=1e-12, atol=1e-15)
    measured = curvature.magnitudes(net, *columns, columns=depth)
    eye = np.eye(depth, dtype=bool)
    np.testing.assert_allclose(measured.diagonal, np.abs(exact[:, eye]).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(measured.off_diagonal, np.abs(exact[:, ~eye]).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_derivatives_equal_finite_differences(activation):
    net, x, y = case(activation)
    theta, step = flat(net), 1e-4
    total = theta.shape[1]
    unit = step * torch.eye(total, dtype=torch.float64)

    def losses(*columns):
        return rebuilt(net, theta + sum(unit[c] * s for c, s in columns)).losses(x, y)

    gradient = torch.stack([(losses((c, 1)) - losses((c, -1))) / (2 * step) for c in range(total)], dim=1)
    norms = gradient.reshape(2, net.depth, -1).norm(dim=2)
    torch.testing.assert_close(curvature.gradient_norms(net, x, y), norms, rtol=1e-6, atol=1e-8)
    h = curvature.hessian(net, x, y)
    for i, j in [(0, 0), (4, 4), (26, 26), (0, 5), (2, 11), (8, 20), (13, 14), (26, 1)]:
        signs = [(s, t) for s in (1, -1) for t in (1, -1)]
        difference = sum(s * t * losses((i, s), (j, t)) for s, t in signs) / (4 * step**2)
        torch.testing.assert_close(h[:, i, j], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize(
    "sizes", [{}, {"width": 1, "depth": 4, "seed": 4}, {"depth": 1}, {"width": 2, "depth": 5, "n": 1}]
)
def test_hessian_equals_torch_func(activation, sizes):
    net, x, y = case(activation, **sizes)
    h, norms = curvature.hessian(net, x, y), curvature.gradient_norms(net, x, y)
    assert h.abs().max() > 0
    for seed in range(2):
        gradient, expected = independent_hessian(net, x, y, seed)
        torch.testing.assert_close(h[seed], expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(norms[seed], gradient.reshape(net.depth, -1).norm(dim=1), rtol=1e-10, atol=1e-13)


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
        for k in range(net.depth):
            gradient = np.outer(after[k].T @ residual, before[k])
            assert float(norms[s, k]) == pytest.approx(np.linalg.norm(gradient), rel=1e-12, abs=1e-14)
            diagonal = np.kron(after[k].T @ after[k], np.outer(before[k], before[k]))
            np.testing.assert_allclose(block(h[s], k, k, size), diagonal, rtol=1e-10, atol=1e-13)
            between = gates[k]  # from W^k's output to W^m's input
            for m in range(k + 1, net.depth):
                output = np.kron(after[k].T @ after[m], np.outer(before[k], before[m]))
                error = np.einsum("m,ni,j->ijmn", after[m].T @ residual, between, before[k]).reshape(size, size)
                np.testing.assert_allclose(block(h[s], k, m, size), output + error, rtol=1e-10, atol=1e-13)
                between = gates[m] @ w[m] @ between


@modest
@given(st.integers(0, 10**6), st.sampled_from(["linear", "relu"]))
def test_hessian_is_symmetric(seed, activation):
    h = curvature.hessian(*case(activation, width=2, seed=seed))
    torch.testing.assert_close(h, h.mT, rtol=1e-11, atol=1e-13)


# ---- columns and magnitudes


def direct_means(h, depth, size):
    blocks = h.abs().reshape(len(h), depth, size, depth, size).mean(dim=(2, 4))
    own = torch.diagonal(blocks, dim1=1, dim2=2)
    return own.mean(dim=1), (blocks.sum(dim=(1, 2)) - own.sum(dim=1)) / (depth * (depth - 1))


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("columns", [36, 1000])
def test_all_columns_give_the_exact_means(activation, columns):
    net, x, y = case(activation, depth=4)
    measured = curvature.magnitudes(net, x, y, columns=columns)
    diagonal, off_diagonal = direct_means(curvature.hessian(net, x, y), 4, 9)
    torch.testing.assert_close(measured.diagonal, diagonal, rtol=1e-12, atol=0)
    torch.testing.assert_close(measured.off_diagonal, off_diagonal, rtol=1e-12, atol=0)
    torch.testing.assert_close(measured.gradient, curvature.gradient_norms(net, x, y).mean(dim=1), rtol=1e-14, atol=0)
    assert torch.equal(measured.diagonal_error, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(measured.off_diagonal_error, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("columns", [3, 9])
def test_sampled_columns_are_unbiased_with_an_honest_error(columns):
    net, x, y = case("linear", width=2, seeds=2)
    exact = direct_means(curvature.hessian(net, x, y), 3, 4)
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


def test_columns_together_equal_columns_one_by_one():
    net, x, y = case("relu", depth=4)
    columns = list(range(35, 0, -1))
    for column, values in zip(columns, curvature.hessian_columns(net, x, y, columns), strict=True):
        torch.testing.assert_close(values, curvature.hessian_columns(net, x, y, [column])[0], rtol=0, atol=1e-14)


def test_columns_are_columns_of_the_hessian():
    net, x, y = case()
    picked = curvature.hessian_columns(net, x, y, [26, 0, 9])
    assert picked.shape == (3, 2, 27)
    torch.testing.assert_close(picked.movedim(0, 2), curvature.hessian(net, x, y)[:, :, [26, 0, 9]], rtol=1e-14, atol=0)


@pytest.mark.parametrize("bad", [[-1], [0, 27], [100], []])
def test_a_column_outside_the_hessian_raises(bad):
    with pytest.raises(IndexError, match="from 0 to 26"):
        curvature.hessian_columns(*case(), bad)


@pytest.mark.parametrize("columns", [-1, 0, 1])
def test_too_few_columns_raise(columns):
    with pytest.raises(ValueError, match=f"At least 2 columns are needed for a standard error, not {columns}"):
        curvature.magnitudes(*case(), columns=columns, generator=rng())


def test_random_columns_need_a_generator():
    with pytest.raises(ValueError, match="needs a generator"):
        curvature.magnitudes(*case(), columns=5)


def test_depth_one_has_no_off_diagonal():
    measured = curvature.magnitudes(*case(depth=1), columns=9)
    assert torch.all(measured.off_diagonal.isnan())
    assert torch.all(measured.diagonal > 0)
    assert measured.off_diagonal.shape == (2,)


def test_width_and_depth_one_have_one_column():
    net, x, y = case("linear", width=1, depth=1)
    measured = curvature.magnitudes(net, x, y, columns=1)
    scale = (net.b**2).sum(dim=(1, 2)) * ((net.a @ x.T) ** 2).mean(dim=(1, 2))
    torch.testing.assert_close(measured.diagonal, scale, rtol=1e-12, atol=0)
    assert torch.equal(measured.diagonal_error, torch.zeros(2, dtype=torch.float64))


def test_a_dead_network_is_flat():
    net, x, y = case("relu")
    dead = MLP(-net.a.abs(), net.hidden, net.b, "relu")
    measured = curvature.magnitudes(dead, x.abs(), y, columns=27)
    for value in (measured.gradient, measured.diagonal, measured.off_diagonal):
        assert torch.equal(value, torch.zeros(2, dtype=torch.float64))


def test_measuring_leaves_the_network_alone():
    net, x, y = case()
    before = [w.clone() for w in net.hidden]
    curvature.magnitudes(net, x, y, columns=27)
    assert all(torch.equal(a, b) for a, b in zip(before, net.hidden, strict=True))
    assert not any(w.requires_grad for w in net.hidden)
