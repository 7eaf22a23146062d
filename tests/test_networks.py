"""The MLP of equation 1, held against numpy with explicit gates, and convolutional networks, against torch.nn."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib.initialization import he, lecun, orthogonal, xavier
from vclib.networks import MLP, fcn, mlp, stripped_resnet

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
        for k, h in enumerate(net.signals(x), start=1):
            expected = torch.nn.Sequential(*layers[: 2 * k])(x).detach()
            torch.testing.assert_close(h[s].mT, expected, rtol=1e-12, atol=1e-14)
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


MODULES = {
    "linear": torch.nn.Identity(),
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "selu": torch.nn.SELU(),
    "sigmoid": torch.nn.Sigmoid(),
}


def module(net, w, stride=1):
    """The filters of one seed as a module of torch.nn, normalised where the network is."""
    conv = torch.nn.Conv2d(
        *w.shape[1::-1], w.shape[-1], stride, padding=w.shape[-1] // 2, padding_mode=net.padding, bias=False
    ).double()
    conv.weight.data.copy_(w)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(len(w), affine=False).double()) if net.batch_norm else conv


def of_torch_nn(net, s, x):
    """What seed s computes, by the modules of torch.nn."""
    phi = MODULES[net.activation]
    outputs = [phi(module(net, net.a[s])(x))]
    for k, w in enumerate(net.hidden, start=1):
        z = module(net, w[s])(outputs[-1])
        outputs.append(phi(z + outputs[k - net.skip] if net.skip and k % net.skip == 0 else z))
    return module(replace(net, batch_norm=False), net.b[s])(outputs[-1])


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize(("kernel", "batch_norm", "skip"), [(3, False, 0), (5, False, 1), (3, True, 0), (3, True, 3)])
def test_an_fcn_is_that_of_torch_nn(activation, padding, kernel, batch_norm, skip):
    net = draw_fcn(activation=activation, padding=padding, kernel=kernel, batch_norm=batch_norm, skip=skip)
    x = images()
    expected = torch.stack([of_torch_nn(net, s, x) for s in range(3)])
    assert expected.abs().max() > 1e-4
    assert torch.allclose(net(x), expected, rtol=1e-10, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("skip", [0, 2])
def test_the_signals_of_an_fcn_are_the_outputs_of_its_shorter_versions(skip):
    """With the unit matrix as read-out, and ReLU last, which changes nothing above 0."""
    net, x = draw_fcn(skip=skip), images()
    unit = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)[..., None, None]
    found = list(net.signals(x))
    assert [tuple(h.shape) for h in found] == [(3, 6, 4, 5, 7)] * (net.depth + 1)
    for k, h in enumerate(found):
        assert torch.allclose(replace(net, hidden=net.hidden[:k], b=unit)(x), h, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_pixel_alone_sees_what_torch_shows_it(padding, kernel, batch_norm):
    if padding == "circular" and kernel == 5:
        pytest.skip("torch does not wrap one pixel twice")
    net, x = draw_fcn(kernel=kernel, padding=padding, batch_norm=batch_norm), images(rows=1, columns=1)
    expected = torch.stack([of_torch_nn(net, s, x) for s in range(3)])
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
        ({"activation": "gelu"}, "The activation 'gelu' is unknown; choose one of linear, relu, tanh, selu, sigmoid."),
    ],
)
def test_bad_sizes_of_an_fcn(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw_fcn(**changes)


# ---- stripped ResNets

RESNET_SIZES = {"blocks": (1, 2, 1, 1), "base": 2, "inputs": 3, "outputs": 4, "seeds": 2, "law": he}


def draw_resnet(**changes):
    generator = torch.Generator().manual_seed(5)
    return stripped_resnet(**(RESNET_SIZES | {"activation": "relu"} | changes), generator=generator)


def resnet_of_torch_nn(net, s, x):
    """What seed s computes, by the modules of torch.nn."""
    phi, filters = MODULES[net.activation], [w[s] for w in net.hidden]
    if net.stem == "imagenet":
        h = torch.nn.MaxPool2d(3, 2, 1)(phi(module(net, net.a[s], stride=2)(x)))
    else:
        h = phi(module(net, net.a[s])(x))
    for stage in range(4):
        for block in range(net.blocks[stage]):
            stride = 2 if stage > 0 and block == 0 else 1
            one, two, three = (filters.pop(0) for _ in range(3))
            path = torch.nn.Sequential(module(net, one), phi, module(net, two, stride), phi, module(net, three))
            if not net.shortcuts:
                h = phi(path(h))
            elif block == 0:
                h = phi(path(h) + module(net, net.shortcuts[stage][s], stride)(h))
            else:
                h = phi(path(h) + h)
    assert not filters
    read_out = torch.nn.Linear(h.shape[1], net.b.shape[1], bias=False).double()
    read_out.weight.data.copy_(net.b[s])
    return read_out(h.mean(dim=(2, 3)))


@pytest.mark.parametrize("activation", ["relu", "selu", "sigmoid"])
@pytest.mark.parametrize(("stem", "rows"), [("cifar", 13), ("imagenet", 50)])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("batch_norm", "skip"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_resnet_is_that_of_torch_nn(activation, stem, rows, padding, big, batch_norm, skip):
    choices = {"stem": stem, "padding": padding, "big": big, "batch_norm": batch_norm, "skip": skip}
    net, x = draw_resnet(activation=activation, **choices), images(n=3, rows=rows, columns=rows + 7)
    with torch.no_grad():
        expected = torch.stack([resnet_of_torch_nn(net, s, x) for s in range(2)])
    assert expected.abs().max() > 1e-4
    assert torch.allclose(net(x), expected, rtol=1e-10, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize(("stem", "stages"), [("cifar", (32, 16, 8, 4)), ("imagenet", (8, 4, 2, 1))])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_stages_halve_the_resolution(stem, stages, padding):
    """The rows of what leaves the stem and each convolution: the second one of a stage has the stride."""
    net = draw_resnet(stem=stem, padding=padding, blocks=(2, 1, 2, 1))
    rows = [h.shape[-1] for h in net.signals(images(n=1, rows=32, columns=32))]
    one, two, three, four = stages
    assert rows == [one, *[one] * 6, one, two, two, two, *[three] * 5, three, four, four]


@pytest.mark.parametrize("shortcuts", [False, True])
def test_the_last_signal_of_a_resnet_gives_its_output(shortcuts):
    net, x = draw_resnet(skip=shortcuts), images(rows=13, columns=13)
    *_, last = net.signals(x)
    assert torch.allclose(torch.einsum("snchw,soc->sno", last, net.b) / last[0, 0, 0].numel(), net(x), rtol=1e-10)


@pytest.mark.parametrize(
    ("blocks", "depth"),
    [
        ((2, 2, 2, 2), 26),
        ((2, 4, 4, 2), 38),
        ((3, 4, 6, 3), 50),
        ((3, 4, 23, 3), 101),
        ((3, 8, 36, 3), 152),
        ((3, 24, 36, 3), 200),
        ((3, 36, 48, 3), 272),
        ((3, 44, 62, 3), 338),
        ((3, 70, 90, 3), 500),
    ],
)
def test_the_depth_counts_the_layers(blocks, depth):
    net = draw_resnet(blocks=list(blocks), base=1, seeds=1)
    assert net.depth == depth == 2 + len(net.hidden)
    assert net.blocks == blocks


def without_numbers(fan_in, fan_out):
    """A law for shapes alone."""
    return SimpleNamespace(sample=lambda *shape, generator: torch.empty(shape, dtype=torch.float64, device="meta"))


def test_resnet_50_has_as_many_weights_as_that_of_torchvision():
    """torchvision.models.resnet50: 25,557,032 parameters, of which 53,120 normalise and 1,000 are biases."""
    sizes = {"blocks": (3, 4, 6, 3), "base": 64, "outputs": 1000, "seeds": 1, "stem": "imagenet", "skip": True}
    net = draw_resnet(**sizes, law=without_numbers)
    count = sum(w.numel() for w in (net.a, *net.hidden, *net.shortcuts, net.b))
    channels = [64, *(w.shape[1] for w in (*net.hidden, *net.shortcuts))]
    assert 2 * sum(channels) == 53_120
    assert count == 25_557_032 - 53_120 - 1_000


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_shapes_of_a_resnet(big, stem):
    net = draw_resnet(big=big, stem=stem, skip=True, inputs=1)
    one, two = (3, 5) if big else (1, 3)
    k = 7 if stem == "imagenet" else 3
    assert net.a.shape == (2, 2, 1, k, k)
    assert net.b.shape == (2, 4, 64)
    shapes, entering = [], 2
    for channels in (2, 4, 4, 8, 16):
        shapes += [(2, channels, entering, one, one), (2, channels, channels, two, two)]
        shapes += [(2, 4 * channels, channels, one, one)]
        entering = 4 * channels
    assert [w.shape for w in net.hidden] == shapes
    assert [w.shape for w in net.shortcuts] == [(2, 8, 2, 1, 1), (2, 16, 8, 1, 1), (2, 32, 16, 1, 1), (2, 64, 32, 1, 1)]
    assert (net.base, net.depth) == (2, 17)
    assert draw_resnet().shortcuts == ()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("law", [he, xavier])
def test_filters_of_a_resnet_have_the_variance_of_their_fans(law, big):
    net = draw_resnet(law=law, big=big, base=4, outputs=10, skip=True, stem="imagenet")
    for w in (net.a, *net.hidden, *net.shortcuts, net.b[..., None, None]):
        pixels = w.shape[-1] ** 2
        variance = float(law(w.shape[2] * pixels, w.shape[1] * pixels).variance)
        error = (0.8 / w.numel()) ** 0.5  # a uniform law has Var(w^2) = 0.8 sigma^4
        assert abs(w.square().mean() / variance - 1) < 4 * error


@pytest.mark.parametrize("draw_one", [draw_fcn, draw_resnet])
def test_float32_networks_have_the_rounded_weights_of_float64(draw_one):
    double, single = draw_one(), draw_one(dtype=torch.float32)
    for right, w in zip((double.a, *double.hidden, double.b), (single.a, *single.hidden, single.b), strict=True):
        assert (right.dtype, w.dtype) == (torch.float64, torch.float32)
        assert torch.equal(w, right.float())
    x = images(rows=16, columns=16)
    assert torch.allclose(single(x.float()).double(), double(x), rtol=1e-4, atol=1e-4 * double(x).abs().max().item())


def test_shortcuts_too_are_rounded_to_float32():
    pair = draw_resnet(skip=True), draw_resnet(skip=True, dtype=torch.float32)
    assert all(torch.equal(w, right.float()) for right, w in zip(*(net.shortcuts for net in pair), strict=True))


def test_losses_of_a_resnet_are_half_mean_squares():
    net, x, y = draw_resnet(), images(rows=16, columns=16), inputs(6, 4)
    expected = [sum(0.5 * ((y[i] - net(x)[s, i]) ** 2).sum() for i in range(6)) / 6 for s in range(2)]
    assert torch.allclose(net.losses(x, y), torch.stack(expected), rtol=1e-12)
    for targets in (y[:, :3], y[:5], y[..., None]):
        message = f"Targets for these inputs have shape (6, 4), not {tuple(targets.shape)}."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            net.losses(x, targets)
    with pytest.raises(ValueError, match=r"^At least one sample is needed\.$"):
        net.losses(x[:0], y[:0])


def test_a_resnet_with_circular_padding_sees_no_shift_by_its_strides():
    net, x = draw_resnet(padding="circular", skip=True), images(n=2, rows=16, columns=16)
    assert torch.allclose(net(x.roll((8, -8), dims=(2, 3))), net(x), rtol=1e-10)
    assert not torch.allclose(net(x.roll(1, dims=2)), net(x), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 0}, "For a ResNet, base is a positive integer, not 0."),
        ({"outputs": 2.5}, "For a ResNet, outputs is a positive integer, not 2.5."),
        ({"seeds": -1}, "For a ResNet, seeds is a positive integer, not -1."),
        ({"blocks": (1, 2, 1)}, "A ResNet has four stages; give a list of four numbers of blocks, not (1, 2, 1)."),
        ({"blocks": [1] * 5}, "A ResNet has four stages; give a list of four numbers of blocks, not [1, 1, 1, 1, 1]."),
        ({"blocks": (1, 0, 1, 1)}, "For a ResNet, blocks[1] is a positive integer, not 0."),
        ({"stem": "mnist"}, "The stem 'mnist' is unknown; choose one of cifar, imagenet."),
        ({"padding": "reflect"}, "The padding 'reflect' is unknown; choose one of zeros, circular."),
        ({"activation": "gelu"}, "The activation 'gelu' is unknown; choose one of linear, relu, tanh, selu, sigmoid."),
    ],
)
def test_bad_sizes_of_a_resnet(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw_resnet(**changes)


def test_blocks_are_a_list():
    with pytest.raises(ValueError, match=r"^A ResNet has four stages; give a list of four numbers of blocks, not 3\.$"):
        draw_resnet(blocks=3)


@pytest.mark.parametrize("draw", [draw_fcn, draw_resnet])
@pytest.mark.parametrize("shape", [(4, 1, 16, 16), (4, 6, 16, 16), (3, 16, 16), (4, 3)])
def test_images_have_the_channels_of_the_networks(draw, shape):
    with pytest.raises(
        ValueError, match=rf"^Images for these networks are \(n, \d, rows, columns\), not {re.escape(str(shape))}\.$"
    ):
        draw(inputs=2 if shape[1:2] == (6,) else 3)(torch.zeros(shape, dtype=torch.float64))


def test_every_seed_may_have_its_own_images():
    for net in (draw_fcn(), draw_resnet()):
        seeds, x = len(net.a), [images(rows=16, columns=16, seed=s) for s in range(len(net.a))]
        own = net.outputs_of(torch.cat(x, dim=1))
        for s in range(seeds):
            assert torch.allclose(own[s], net(x[s])[s], rtol=1e-10, atol=1e-14)


def test_shortcuts_leave_the_other_weights_as_they_are():
    plain, residual = draw_resnet(skip=False), draw_resnet(skip=True)
    pairs = zip((plain.a, *plain.hidden, plain.b), (residual.a, *residual.hidden, residual.b), strict=True)
    assert all(torch.equal(w, v) for w, v in pairs)
