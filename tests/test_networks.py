"""The MLP of equation 1, held against numpy with explicit gates, and convolutional networks, against torch.nn."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib.initialization import he, lecun, orthogonal, xavier
from vclib.networks import MLP, fcn, mlp

modest = settings(deadline=None, max_examples=25, derandomize=True)
SIZES = {"depth": 4, "width": 3, "inputs": 5, "outputs": 2, "seeds": 3}


def draw(seed=11, *, law=he, activation="relu", **sizes):
    generator = torch.Generator().manual_seed(seed)
    return mlp(**(SIZES | sizes), law=law, activation=activation, generator=generator)


def inputs(n, size, seed=9):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal_forward(net, seed, x):
    """Equation 1 for one sample: B D^L W^L ... D^1 W^1 D^0 A x, the gates D^l the diagonal matrices of phi(h)/h."""
    a, b, *hidden = (m[seed].numpy() for m in (net.a, net.b, *net.hidden))

    def gate(h):
        shares = {"linear": np.ones_like, "relu": lambda h: 1.0 * (h > 0), "tanh": lambda h: np.tanh(h) / h}
        return np.diag(shares[net.activation](h))

    product = gate(a @ x) @ a
    for w in hidden:
        product = gate(w @ product @ x) @ w @ product
    return b @ product @ x


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize(
    "sizes", [{}, {"width": 1, "seeds": 64}, {"depth": 1, "outputs": 1}, {"depth": 9, "inputs": 1}]
)
def test_forward_is_equation_one(activation, sizes):
    net = draw(activation=activation, **sizes)
    x = inputs(6, net.a.shape[2])
    literal = [[literal_forward(net, s, sample) for sample in x.numpy()] for s in range(net.a.shape[0])]
    assert np.abs(literal).max() > 0
    np.testing.assert_allclose(net(x), literal, rtol=1e-12, atol=1e-14)


def test_losses_are_half_mean_squares():
    net, x, y = draw(), inputs(6, 5), inputs(6, 2, seed=1)
    literal = [
        sum(np.sum((t - literal_forward(net, s, v)) ** 2) for v, t in zip(x.numpy(), y.numpy(), strict=True)) / (2 * 6)
        for s in range(3)
    ]
    np.testing.assert_allclose(net.losses(x, y), literal, rtol=1e-12)


def test_seeds_do_not_see_each_other():
    net, x, y = draw(), inputs(6, 5), inputs(6, 2, seed=1)
    for s in range(3):
        alone = MLP(net.a[s : s + 1], tuple(w[s : s + 1] for w in net.hidden), net.b[s : s + 1], "relu")
        torch.testing.assert_close(alone(x)[0], net(x)[s], rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(alone.losses(x, y)[0], net.losses(x, y)[s], rtol=1e-13, atol=0)
    assert not torch.allclose(net(x)[0], net(x)[1])


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_samples_do_not_see_each_other(activation):
    net, x = draw(activation=activation), inputs(6, 5)
    torch.testing.assert_close(torch.cat([net(row[None]) for row in x], dim=1), net(x), rtol=1e-13, atol=1e-15)


def test_a_linear_net_is_a_matrix_product():
    net, x = draw(activation="linear", depth=6, law=xavier), inputs(4, 5)
    for s in range(3):
        chain = np.linalg.multi_dot([net.b[s].numpy(), *(w[s].numpy() for w in reversed(net.hidden)), net.a[s].numpy()])
        np.testing.assert_allclose(net(x)[s], x.numpy() @ chain.T, rtol=1e-12, atol=1e-14)


@modest
@given(st.floats(1e-3, 1e3), st.integers(0, 10**6), st.integers(0, 5))
def test_relu_nets_are_positively_homogeneous(factor, seed, layer):
    net, x = draw(seed), inputs(3, 5, seed)
    torch.testing.assert_close(net(factor * x), factor * net(x), rtol=1e-11, atol=0)
    matrices = [net.a, *net.hidden, net.b]
    matrices[layer] = factor * matrices[layer]
    scaled = MLP(matrices[0], tuple(matrices[1:-1]), matrices[-1], "relu")
    torch.testing.assert_close(scaled(x), factor * net(x), rtol=1e-11, atol=0)


def test_a_relu_net_is_not_linear():
    net, x = draw(), inputs(3, 5)
    assert not torch.allclose(net(-x), -net(x))


def test_shapes_depth_and_width():
    net = draw(depth=2, width=7)
    assert (net.depth, net.width) == (2, 7)
    assert net.a.shape == (3, 7, 5)
    assert net.b.shape == (3, 2, 7)
    assert [w.shape for w in net.hidden] == [(3, 7, 7)] * 2
    assert net.a.dtype == torch.float64


def test_each_matrix_follows_the_law_of_its_own_fans():
    wide = {"inputs": 400, "outputs": 25, "width": 100, "depth": 1, "seeds": 2}
    for law, variances in (
        (he, (2 / 400, 2 / 100, 2 / 100)),
        (lecun, (1 / 1200, 1 / 300, 1 / 300)),
        (xavier, (2 / 500, 1 / 100, 2 / 125)),
    ):
        net = draw(law=law, **wide)
        for matrix, variance in zip((net.a, net.hidden[0], net.b), variances, strict=True):
            error = (0.8 / matrix.numel()) ** 0.5  # a uniform law has Var(w^2) = 0.8 sigma^4
            assert abs(matrix.square().mean() / variance - 1) < 4 * error
    net = draw(law=orthogonal, **wide)
    torch.testing.assert_close(net.b @ net.b.mT, torch.eye(25, dtype=torch.float64).expand(2, 25, 25))
    torch.testing.assert_close(net.a @ net.a.mT, torch.eye(100, dtype=torch.float64).expand(2, 100, 100))


def test_the_generator_decides():
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first.hidden[3], again.hidden[3])
    assert torch.equal(first.b, again.b)
    assert not torch.equal(first.b, other.b)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_a_size_that_is_none_raises(name, bad):
    with pytest.raises(ValueError, match=f"For an MLP, {name} is a positive integer, not {bad}"):
        draw(**{name: bad})


def test_an_unknown_activation_raises():
    with pytest.raises(ValueError, match="'sigmoid' is unknown; choose one of linear, relu, tanh"):
        draw(activation="sigmoid")


# ---- biases


def test_each_layer_has_a_bias_of_its_units():
    shapes = [(3, 7), (3, 7), (3, 7), (3, 2)]
    assert [bias.shape for bias in draw(depth=2, width=7, biases="uniform").biases] == shapes
    zeros = draw(depth=2, width=7, biases="zero").biases
    assert [bias.shape for bias in zeros] == shapes
    assert not any(bias.any() for bias in zeros)
    assert {bias.dtype for bias in zeros} == {torch.float64}
    assert draw().biases == draw(biases="none").biases == ()


def test_uniform_biases_are_drawn_as_torch_draws_them():
    """Uniform on an interval with the fan-in of the same layer: its ends are nearly reached, its variance is right."""
    net = draw(inputs=400, outputs=25, width=100, depth=2, seeds=40, biases="uniform")
    for bias, matrix in zip(net.biases, (net.a, *net.hidden, net.b), strict=True):
        end = matrix.shape[2] ** -0.5
        assert end * (1 - 20 / bias.numel()) < bias.max() < end
        assert -end < bias.min() < -end * (1 - 20 / bias.numel())
        assert abs(bias.mean()) < 4 * end / (3 * bias.numel()) ** 0.5
        assert abs(3 * bias.square().mean() / end**2 - 1) < 4 * (0.8 / bias.numel()) ** 0.5
        torch.manual_seed(0)
        layer = torch.nn.Linear(matrix.shape[2], 10_000, dtype=torch.float64)
        assert end * 0.99 < layer.bias.abs().max() <= end


@modest
@given(st.integers(0, 10**6), st.sampled_from([he, orthogonal]))
def test_weights_do_not_depend_on_the_kind_of_biases(seed, law):
    none, *others = (draw(seed, law=law, biases=kind) for kind in ("none", "zero", "uniform"))
    for net in others:
        for w, right in zip((net.a, *net.hidden, net.b), (none.a, *none.hidden, none.b), strict=True):
            assert torch.equal(w, right)


@pytest.mark.parametrize("kind", ["none", "zero", "uniform"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("sizes", [{}, {"width": 1, "outputs": 1}, {"depth": 1, "inputs": 1, "seeds": 1}])
def test_networks_with_biases_are_those_of_torch(kind, activation, sizes):
    net = draw(activation=activation, biases=kind, **sizes)
    x, modules = inputs(6, net.a.shape[2]), {"linear": torch.nn.Identity, "relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
    for s in range(len(net.a)):
        layers = []
        for k, matrix in enumerate((net.a, *net.hidden, net.b)):
            layer = torch.nn.Linear(matrix.shape[2], matrix.shape[1], bias=kind != "none", dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(matrix[s])
                if net.biases:
                    layer.bias.copy_(net.biases[k][s])
            layers += [layer, modules[activation]()]
        right = torch.nn.Sequential(*layers[:-1])(x).detach()
        torch.testing.assert_close(net(x)[s], right, rtol=1e-12, atol=1e-14)
        targets = inputs(6, net.b.shape[1], seed=1)
        half = torch.nn.functional.mse_loss(right, targets, reduction="sum") / 12
        torch.testing.assert_close(net.losses(x, targets)[s], half, rtol=1e-12, atol=0)


def test_unknown_biases_raise():
    with pytest.raises(ValueError, match=r"^Biases 'normal' are unknown; choose one of none, zero, uniform\.$"):
        draw(biases="normal")


# ---- fully convolutional networks

FCN_SIZES = {"depth": 7, "channels": 4, "inputs": 3, "outputs": 2, "seeds": 3, "law": he, "activation": "relu"}


def draw_fcn(**changes):
    return fcn(**(FCN_SIZES | changes), generator=torch.Generator().manual_seed(5))


def images(n=6, inputs=3, rows=5, columns=7, seed=6):
    return torch.randn(n, inputs, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_torch_nn(net, s, x):
    """What seed s computes, by the modules of torch.nn."""

    def layer(w):
        module = torch.nn.Conv2d(
            *w.shape[1::-1], w.shape[-1], padding=w.shape[-1] // 2, padding_mode=net.padding, bias=False
        ).double()
        module.weight.data.copy_(w)
        norm = torch.nn.BatchNorm2d(len(w), affine=False).double() if net.batch_norm else torch.nn.Identity()
        return module, norm

    phi = {"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh(), "linear": torch.nn.Identity()}[net.activation]
    conv, norm = layer(net.a[s])
    outputs = [phi(norm(conv(x)))]
    for k, w in enumerate(net.hidden, start=1):
        conv, norm = layer(w[s])
        z = norm(conv(outputs[-1]))
        outputs.append(phi(z + outputs[k - net.skip] if net.skip and k % net.skip == 0 else z))
    return layer(net.b[s])[0](outputs[-1])


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize(("kernel", "batch_norm", "skip"), [(3, False, 0), (5, False, 1), (3, True, 0), (3, True, 3)])
def test_an_fcn_is_that_of_torch_nn(activation, padding, kernel, batch_norm, skip):
    net = draw_fcn(activation=activation, padding=padding, kernel=kernel, batch_norm=batch_norm, skip=skip)
    x = images()
    expected = torch.stack([of_torch_nn(net, s, x) for s in range(3)])
    assert expected.abs().max() > 1e-4
    assert torch.allclose(net(x), expected, rtol=1e-10, atol=1e-12 * expected.abs().max().item())


def test_an_fcn_of_one_pixel_is_an_mlp():
    net = draw_fcn(kernel=1)
    dense = MLP(net.a[..., 0, 0], tuple(w[..., 0, 0] for w in net.hidden), net.b[..., 0, 0], "relu")
    x, y = images(rows=1, columns=1), images(inputs=2, rows=1, columns=1, seed=7)
    assert torch.allclose(net(x)[..., 0, 0], dense(x[..., 0, 0]), rtol=1e-12, atol=0)
    assert torch.allclose(net.losses(x, y), dense.losses(x[..., 0, 0], y[..., 0, 0]), rtol=1e-12, atol=0)
    assert net.width == dense.width == 4


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_only_circular_padding_lets_images_slide(padding):
    net, x = draw_fcn(padding=padding), images()
    slid = net(x.roll((2, 3), dims=(2, 3))).roll((-2, -3), dims=(3, 4))
    assert torch.allclose(slid, net(x), rtol=1e-9, atol=1e-12) == (padding == "circular")


def test_the_filters_have_the_variance_of_their_fans():
    net = draw_fcn(depth=1, channels=60, seeds=2)
    for w, fan_in in ((net.a, 27), (net.hidden[0], 540), (net.b, 540)):
        assert w.var().item() == pytest.approx(2 / fan_in, rel=0.05)
    assert net.width == 540


def test_losses_of_an_fcn_are_sums_over_pixels():
    net, x, y = draw_fcn(seeds=2), images(), images(inputs=2, seed=8)
    expected = [sum(0.5 * ((y[i] - net(x)[s, i]) ** 2).sum() for i in range(6)) / 6 for s in range(2)]
    assert torch.allclose(net.losses(x, y), torch.stack(expected), rtol=1e-12)
    with pytest.raises(ValueError, match=r"Targets for these inputs have shape \(6, 2, 5, 7\), not \(6, 2, 7, 5\)"):
        net.losses(x, y.mT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "For an FCN, channels is a positive integer, not 0."),
        ({"depth": -1}, "For an FCN, depth is a positive integer, not -1."),
        ({"kernel": 2}, "The kernel of an FCN is odd, so that the resolution is kept, not 2."),
        ({"kernel": 2.5}, "For an FCN, kernel is a positive integer, not 2.5."),
        ({"padding": "reflect"}, "The padding 'reflect' is unknown; choose one of zeros, circular."),
        ({"skip": -3}, "skip is a number of layers, or 0 for none, not -3."),
        ({"activation": "gelu"}, "The activation 'gelu' is unknown; choose one of linear, relu, tanh."),
    ],
)
def test_bad_sizes_of_an_fcn(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw_fcn(**changes)
