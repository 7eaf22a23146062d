"""The ensemble trainer, held against torch.optim, differences in long double, itself in other company, and SIGKILL."""

import itertools
import math
import multiprocessing
import os
import re
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib import training
from vclib.initialization import he, xavier
from vclib.networks import fcn, mlp, stripped_resnet
from vclib.training import (
    CURVES,
    LOSSES,
    SGD,
    Adam,
    Clipped,
    DamagedCheckpoint,
    Normalized,
    RMSprop,
    SignDescent,
    train,
)

modest = settings(deadline=None, max_examples=25, derandomize=True)
SIZES = {"depth": 3, "width": 6, "inputs": 5, "outputs": 3, "seeds": 2}
OPTIMIZERS = [
    SGD(0.02),
    SGD(0.04),  # a group with the one before
    SGD(0.02, momentum=0.9),
    RMSprop(0.002),
    RMSprop(0.002, beta2=0.5),
    Adam(0.01),
    Adam(0.01, beta1=0.5, beta2=0.9, eps=1e-3),
    Adam(0.003, weight_decay=0.1),
    Clipped(0.05, max_norm=0.3),
    Clipped(0.03, max_norm=100.0),
    SignDescent(0.002),
    Normalized(0.02),
]
LINEAR, RELU, TANH = "linear", "relu", "tanh"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(activation=TANH, *, biases="none", seed=0, **sizes):
    law = he if activation == RELU else xavier
    return mlp(**(SIZES | sizes), law=law, activation=activation, biases=biases, generator=rng(seed))


def samples(net, n=48, seed=1):
    x = torch.randn(n, net.a.shape[2], dtype=torch.float64, generator=rng(seed))
    return x, torch.randint(net.b.shape[1], (n,), generator=rng(seed + 100))


def run(net, optimizers, train_set=None, test_set=None, **options):
    """A run in float64; both sets are drawn unless they are given."""
    train_set = samples(net) if train_set is None else train_set
    test_set = samples(net, 33, seed=2) if test_set is None else test_set
    return train(net, optimizers, train_set, test_set, **({"epochs": 2, "batch": 16, "dtype": torch.float64} | options))


def parts(net):
    return [net.a, *net.hidden, net.b, *net.biases]


def curves(history):
    return {name: getattr(history, name) for name in CURVES}


def assert_same(one, other):
    """Equal to the last bit."""
    np.testing.assert_array_equal(one.diverged, other.diverged)
    for name in CURVES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for left, right in zip(one.networks, other.networks, strict=True):
        assert all(torch.equal(v, w) for v, w in zip(parts(left), parts(right), strict=True))


def assert_weights(found, expected, tolerance=1e-12):
    """Equal up to ``tolerance`` times the largest entry of each matrix."""
    for w, right in zip(found, expected, strict=True):
        assert w.shape == right.shape
        assert (w - right).abs().max() <= tolerance * right.abs().max()


@contextmanager
def raises(sentence, error=ValueError):
    """The error says this, and this is one sentence."""
    assert sentence.endswith(".")
    assert not re.search(r"[.!?]\s|\n", sentence)
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        yield


# ---- torch.optim


class Reference:
    """One member: modules, autograd and an optimiser of torch, all its own."""

    def __init__(self, net, s, optimizer, loss):
        maps, kind = [net.a, *net.hidden, net.b], {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "linear": None}
        self.layers = [torch.nn.Linear(*w[s].T.shape, bias=bool(net.biases), dtype=torch.float64) for w in maps]
        with torch.no_grad():
            for k, layer in enumerate(self.layers):
                layer.weight.copy_(maps[k][s])
                if net.biases:
                    layer.bias.copy_(net.biases[k][s])
        gate = kind[net.activation] or torch.nn.Identity
        gated = [module for layer in self.layers[:-1] for module in (layer, gate())]
        self.module = torch.nn.Sequential(*gated, self.layers[-1])
        self.rule, self.loss, self.parameters = optimizer, loss, list(self.module.parameters())
        self.optimizer = self.of_torch()

    def of_torch(self):
        rule, lr = self.rule, self.rule.step_size
        if isinstance(rule, RMSprop):
            return torch.optim.RMSprop(self.parameters, lr=lr, alpha=rule.beta2)
        if isinstance(rule, Adam):
            options = {"lr": lr, "betas": (rule.beta1, rule.beta2), "eps": rule.eps}
            if rule.weight_decay:
                return torch.optim.AdamW(self.parameters, weight_decay=rule.weight_decay, **options)
            return torch.optim.Adam(self.parameters, **options)
        return torch.optim.SGD(self.parameters, lr=lr, momentum=getattr(rule, "momentum", 0.0))

    def value(self, x, y):
        outputs = self.module(x)
        if self.loss == "cross-entropy":
            return torch.nn.functional.cross_entropy(outputs, y), outputs
        one_hot = torch.nn.functional.one_hot(y, outputs.shape[1]).to(x)
        return torch.nn.functional.mse_loss(outputs, one_hot, reduction="sum") / (2 * len(x)), outputs

    def gradient(self, x, y):
        """Fill the gradients; the loss, the accuracy and the norm."""
        self.optimizer.zero_grad()
        loss, outputs = self.value(x, y)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters])
        return loss.item(), (outputs.argmax(dim=1) == y).double().mean().item(), norm.item()

    def step(self, x, y):
        _, _, norm = self.gradient(x, y)
        if isinstance(self.rule, Clipped):
            torch.nn.utils.clip_grad_norm_(self.parameters, self.rule.max_norm)
        for p in self.parameters:
            if isinstance(self.rule, SignDescent):
                p.grad.sign_()
            elif isinstance(self.rule, Normalized):
                p.grad /= norm
        self.optimizer.step()

    @torch.no_grad()
    def measure(self, measured, test_set):
        """In the order of CURVES."""
        with torch.enable_grad():
            train = self.gradient(*measured)
        loss, outputs = self.value(*test_set)
        return *train, loss.item(), (outputs.argmax(dim=1) == test_set[1]).double().mean().item()

    def weights(self):
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        return [w.detach().clone() for w in [layer.weight for layer in self.layers] + biases]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("biases", ["none", "uniform"])
@pytest.mark.parametrize("activation", [LINEAR, RELU, TANH])
def test_every_optimiser_follows_torch_step_by_step(activation, biases, loss):
    net = draw(activation, biases=biases)
    data, test_set, steps = samples(net, 20), samples(net, 33, seed=2), 20
    options = {"batch": 20, "loss": loss}  # a batch is the whole set, so that an epoch is one step
    runs = [run(net, OPTIMIZERS, data, test_set, epochs=k, **options) for k in range(steps + 1)]
    for c, s in itertools.product(range(len(OPTIMIZERS)), range(2)):
        reference, course = Reference(net, s, OPTIMIZERS[c], loss), []
        for k in range(steps + 1):
            if k:
                reference.step(*data)
            assert_weights([w[s] for w in parts(runs[k].networks[c])], reference.weights())
            course.append(reference.measure(data, test_set))
        found = np.stack([getattr(runs[-1], name)[:, c, s] for name in CURVES], axis=1)
        np.testing.assert_allclose(found, course, rtol=1e-9, atol=1e-13)
    assert not runs[-1].diverged.any()
    assert np.abs(np.diff(runs[-1].train_loss, axis=0)).min() > 0


SMALL = {
    "one of everything": {"depth": 1, "width": 1, "inputs": 1, "outputs": 1, "seeds": 1},
    "one seed": {"seeds": 1, "width": 9},
    "depth one, wide": {"depth": 1, "width": 20, "inputs": 2},
    "more outputs than units": {"outputs": 8, "width": 3, "seeds": 4},
}


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-12, 1e-8, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_are_lifted_from_zero_only_where_no_bit_changes(dtype, eps):
    of = torch.finfo(dtype)
    v = torch.cat([torch.zeros(1), torch.logspace(-45, 3, 4801)]).to(dtype)
    v = torch.cat([v, torch.tensor([of.smallest_normal, of.smallest_normal / 8], dtype=dtype)])
    assert torch.equal(training._root(v, eps).add(eps), v.sqrt().add(eps))
    assert (training._root(v, eps)[0] > 0) or eps < 1e-8


@pytest.mark.parametrize("sizes", SMALL.values(), ids=SMALL)
def test_every_size_follows_torch(sizes):
    net = draw(biases="zero", seed=3, **sizes)
    data, test_set, chosen = samples(net, 7), samples(net, 1, seed=2), [Adam(0.01), SGD(0.1, momentum=0.5)]
    history = run(net, chosen, data, test_set, epochs=5, batch=7, loss="squared error")
    for c, s in itertools.product(range(2), range(len(net.a))):
        reference = Reference(net, s, chosen[c], "squared error")
        for _ in range(5):
            reference.step(*data)
        assert_weights([w[s] for w in parts(history.networks[c])], reference.weights())
        last = [getattr(history, name)[-1, c, s] for name in CURVES]
        np.testing.assert_allclose(last, reference.measure(data, test_set), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("activation", [RELU, TANH])
def test_batches_in_the_drawn_order_follow_torch(activation):
    """Epochs of several steps, a rest that is left out, and fewer measured samples than there are."""
    net = draw(activation, biases="uniform")
    (x, y), test_set, chosen = samples(net, 70), samples(net, 33, seed=2), OPTIMIZERS[::2]
    history = run(net, chosen, (x, y), test_set, epochs=3, batch=16, seed=7, measured=40)
    for c, s in itertools.product(range(len(chosen)), range(2)):
        reference = Reference(net, s, chosen[c], "cross-entropy")
        course = [reference.measure((x[:40], y[:40]), test_set)]
        for epoch in (1, 2, 3):
            order = np.random.default_rng([7, s, epoch]).permutation(70)
            for step in range(4):
                index = order[16 * step : 16 * step + 16]
                reference.step(x[index], y[index])
            course.append(reference.measure((x[:40], y[:40]), test_set))
        assert_weights([w[s] for w in parts(history.networks[c])], reference.weights())
        found = np.stack([getattr(history, name)[:, c, s] for name in CURVES], axis=1)
        np.testing.assert_allclose(found, course, rtol=1e-9, atol=1e-13)


def test_curves_of_many_samples_are_means_over_all_of_them():
    net = draw(RELU, depth=1)
    data, test_set = samples(net, 1100), samples(net, 1025, seed=2)
    history = run(net, [SGD(0.1)], data, test_set, epochs=1, batch=1100, measured=1030)
    for s in range(2):
        reference = Reference(net, s, SGD(0.1), "cross-entropy")
        first = [curve[0, 0, s] for curve in curves(history).values()]
        expected = reference.measure([part[:1030] for part in data], test_set)
        np.testing.assert_allclose(first, expected, rtol=1e-11)


def test_float32_is_the_default_and_close_to_float64():
    net = draw()
    sets = samples(net), samples(net, 33, seed=2)
    history, exact = (train(net, OPTIMIZERS, *sets, epochs=2, batch=16, **o) for o in ({}, {"dtype": torch.float64}))
    for one, other in zip(history.networks, exact.networks, strict=True):
        assert {w.dtype for w in parts(one)} == {torch.float32}
        assert {w.dtype for w in parts(other)} == {torch.float64}
        assert_weights([w.double() for w in parts(one)], parts(other), 1e-4)
    for name in CURVES:
        assert getattr(history, name).dtype == np.float64
        np.testing.assert_allclose(getattr(history, name), getattr(exact, name), rtol=1e-4, atol=1e-5)


# ---- gradients


def literal_loss(weights, biases, x, y, loss):
    """In numpy's long double, sample by sample."""
    total = np.longdouble(0)
    for h, label in zip(x, y, strict=True):
        for w, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = np.tanh(w @ h + bias)
        outputs = weights[-1] @ h + biases[-1]
        if loss == "cross-entropy":
            total += np.log(np.exp(outputs).sum()) - outputs[label]
        else:
            total += ((outputs - np.eye(len(outputs))[label]) ** 2).sum() / 2
    return total / len(x)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_differences_of_a_literal_loss(loss):
    net = draw(biases="uniform", depth=2, width=3, inputs=2)
    members, sizes = training._Members(net, 2, loss, torch.device("cpu"), torch.float64), (2, 3)
    with torch.no_grad():
        for block in members.blocks:  # no two members are alike
            block += 0.3 * torch.randn(block.shape, dtype=torch.float64, generator=rng(5))
    x = torch.randn(*sizes, 2, dtype=torch.float64, generator=rng(6))
    y = torch.randint(3, sizes, generator=rng(7))
    losses, right = members.run(x, y)
    assert losses.shape == right.shape == (2, 2)
    for s, c in itertools.product(range(2), range(2)):
        (a, hidden, b, *bias), gradients = (
            [block[:, s, c].numpy().astype(np.longdouble) for block in blocks]
            for blocks in (members.blocks, members.gradients)
        )
        bias = [layer[:, 0] for part in bias for layer in part]
        found = [gradients[0][0], *gradients[1], gradients[2][0], *(v[:, 0] for part in gradients[3:] for v in part)]
        every, data = [a[0], *hidden, b[0], *bias], (x[s].numpy().astype(np.longdouble), y[s].numpy(), loss)
        np.testing.assert_allclose(float(losses[s, c]), float(literal_loss(every[:4], every[4:], *data)), rtol=1e-13)
        for w, g in zip(every, found, strict=True):
            assert w.shape == g.shape
            for place in np.ndindex(w.shape):
                old, two = w[place], []
                for step in (1e-6, -1e-6):
                    w[place] = old + step
                    two.append(literal_loss(every[:4], every[4:], *data))
                w[place] = old
                assert abs((two[0] - two[1]) / 2e-6 - g[place]) < 1e-10


def test_samples_of_all_seeds_alike_are_given_once():
    net = draw(RELU, seeds=3)
    members, (x, y) = training._Members(net, 2, LOSSES[0], torch.device("cpu"), torch.float64), samples(net, 10)
    results = []
    for sets in ((x[None], y[None]), (x.repeat(3, 1, 1), y.repeat(3, 1))):
        results.append([*members.run(*sets), *(g.clone() for g in members.gradients)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
    before = [g.clone() for g in members.gradients]
    members.run(2 * x[None], y[None], backward=False)
    assert all(torch.equal(g, old) for g, old in zip(members.gradients, before, strict=True))


# ---- company


def assert_alike(history, columns, other, others):
    """These members of both histories took the same course, to rounding."""
    for c, d in zip(columns, others, strict=True):
        for name in CURVES:
            left, right = getattr(history, name)[:, c], getattr(other, name)[:, d]
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-14, err_msg=name)
        assert_weights(parts(history.networks[c]), parts(other.networks[d]))


def test_a_member_does_not_see_its_company():
    net = draw(biases="uniform")
    together = run(net, OPTIMIZERS, epochs=3)
    for c, optimizer in enumerate(OPTIMIZERS):
        assert_alike(together, [c], run(net, [optimizer], epochs=3), [0])


def test_a_seed_does_not_see_the_seeds_after_it():
    net = draw(seeds=4)
    first = replace(net, a=net.a[:2], hidden=tuple(w[:2] for w in net.hidden), b=net.b[:2])
    four, two = run(net, OPTIMIZERS), run(first, OPTIMIZERS)
    for name in CURVES:
        np.testing.assert_allclose(getattr(four, name)[..., :2], getattr(two, name), rtol=1e-10, atol=1e-14)


@modest
@given(st.permutations(range(len(OPTIMIZERS))), st.integers(1, len(OPTIMIZERS)), st.integers(0, 99))
def test_the_order_of_the_optimisers_is_that_of_the_curves(order, count, seed):
    net, chosen = draw(seed=seed), order[:count]
    assert_alike(
        run(net, OPTIMIZERS, seed=seed), chosen, run(net, [OPTIMIZERS[c] for c in chosen], seed=seed), range(count)
    )


def test_equal_optimisers_have_equal_curves():
    history = run(draw(), [Adam(0.01), SGD(0.1), Adam(0.01), Adam(0.01)], epochs=3)
    assert_alike(history, [0, 0], history, [2, 3])
    assert np.abs(history.train_loss[-1, 0] - history.train_loss[-1, 1]).min() > 1e-3


def test_members_of_a_seed_start_equal_and_seeds_do_not():
    history = run(draw(), OPTIMIZERS, epochs=1)
    for name in CURVES:
        start = getattr(history, name)[0]
        np.testing.assert_allclose(start, np.broadcast_to(start[0], start.shape), rtol=1e-13)
    assert len(set(history.train_loss[0, 0])) == 2


def test_neighbours_that_differ_in_their_step_size_are_one_group():
    members = training._Members(draw(), 5, LOSSES[0], torch.device("cpu"), torch.float64)
    chosen = [SGD(0.1), SGD(0.2), SGD(0.1, momentum=0.5), Adam(0.1), SGD(0.3)]
    groups = training._groups(chosen, members)
    assert [group.columns for group in groups] == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert [group.step_size.flatten().tolist() for group in groups] == [[0.1, 0.2], [0.1], [0.1], [0.3]]


def test_the_size_of_the_pieces_does_not_matter(monkeypatch):
    net = draw(depth=7, biases="uniform")
    whole = run(net, OPTIMIZERS)
    for chunk in (1, 200):  # a piece for each layer, pieces of two layers and a rest
        monkeypatch.setattr(training, "CHUNK", chunk)
        assert_same(run(net, OPTIMIZERS), whole)


def test_without_a_step_size_nothing_moves():
    net = draw(biases="uniform")
    history = run(net, [replace(optimizer, step_size=0.0) for optimizer in OPTIMIZERS])
    for trained in history.networks:
        assert all(torch.equal(v, w) for v, w in zip(parts(trained), parts(net), strict=True))
    for curve in curves(history).values():
        np.testing.assert_array_equal(curve, np.broadcast_to(curve[0], curve.shape))


def test_no_epochs_are_the_curves_before_training():
    net = draw()
    none, two = run(net, OPTIMIZERS, epochs=0), run(net, OPTIMIZERS)
    for name in CURVES:
        np.testing.assert_array_equal(getattr(none, name), getattr(two, name)[:1])
    assert all(torch.equal(v, w) for v, w in zip(parts(none.networks[0]), parts(net), strict=True))


def test_training_changes_neither_the_network_nor_the_data():
    net = draw(biases="uniform")
    data, test_set = samples(net), samples(net, 33, seed=2)
    before = [w.clone() for w in (*parts(net), *data, *test_set)]
    history = run(net, OPTIMIZERS, data, test_set)
    assert all(torch.equal(v, w) for v, w in zip((*parts(net), *data, *test_set), before, strict=True))
    with torch.no_grad():
        for w in parts(history.networks[0]):
            w.zero_()
    assert all(w.abs().max() > 0 for w in parts(history.networks[1]))
    assert all(torch.equal(v, w) for v, w in zip(parts(net), before, strict=False))


def test_the_norm_is_zero_where_there_is_no_gradient():
    dead = draw(RELU)
    dead = replace(dead, a=-dead.a.abs())
    x, y = samples(dead)
    history = run(dead, [Normalized(0.1), Clipped(0.1)], (x.abs(), y))
    assert not history.gradient_norm.any()
    for trained in history.networks:
        assert all(torch.equal(v, w) for v, w in zip(parts(trained), parts(dead), strict=True))


# ---- batches


def test_an_epoch_visits_samples_once_and_in_an_order_of_its_own(monkeypatch):
    net, seen, original = draw(inputs=1, seeds=3), [], training._Members.run

    def spying(self, x, y, *, backward=True):
        if len(x) == 3:
            seen.append(x[..., 0].long())
            assert torch.equal(y, seen[-1] % 3)  # labels go with their samples
        return original(self, x, y, backward=backward)

    monkeypatch.setattr(training._Members, "run", spying)
    x = torch.arange(50, dtype=torch.float64)[:, None]
    run(net, [SGD(0.0), Adam(0.0)], (x, x[:, 0].long() % 3), epochs=4, batch=16)
    visits = torch.stack(seen).view(4, 3, 3, 16).transpose(1, 2).flatten(2)  # epochs, seeds, samples
    orders = {tuple(order) for epoch in visits.tolist() for order in epoch}
    assert len(orders) == 12
    assert all(len(set(order)) == 48 for order in orders)
    assert visits.unique().tolist() == list(range(50))


@modest
@given(st.integers(0, 2**40), st.integers(1, 5), st.integers(1, 1000), st.integers(1, 300))
def test_orders_are_functions_of_seed_member_and_epoch(seed, seeds, epoch, n):
    orders = training._orders(seed, seeds, epoch, n)
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(n), (seeds, n)))
    np.testing.assert_array_equal(orders, training._orders(seed, seeds, epoch, n))
    np.testing.assert_array_equal(orders, training._orders(seed, seeds + 2, epoch, n)[:seeds])
    if n > 50:
        for others in (training._orders(seed + 1, seeds, epoch, n), training._orders(seed, seeds, epoch + 1, n)):
            assert (orders != others).any(axis=1).all()
        assert len(np.unique(orders, axis=0)) == seeds


def test_the_seed_decides():
    net = draw()
    assert_same(run(net, OPTIMIZERS, seed=3), run(net, OPTIMIZERS, seed=3))
    assert not np.array_equal(run(net, [SGD(0.1)], seed=3).train_loss, run(net, [SGD(0.1)], seed=4).train_loss)


# ---- rules of one's own


@dataclass(frozen=True)
class HeavyBall:
    """Momentum in other words: a multiple of the last change of the weights."""

    step_size: float
    share: float

    def update(self, w, g, memory, k, step_size, norm):
        assert norm is None
        change = -step_size * g + self.share * memory.get("change", torch.zeros_like(w))
        memory["change"] = change
        w += change


@dataclass(frozen=True)
class Breaking:
    """Gradient descent that writes ``value`` into the weights of one seed at step ``at``."""

    step_size: float
    at: int
    seed: int = 1
    value: float = math.nan

    def update(self, w, g, memory, k, step_size, norm):
        w -= step_size * g
        if k == self.at:
            w[:, self.seed] = self.value


@dataclass(frozen=True)
class Noting:
    """Writes down what it is given."""

    step_size: float
    seen: list
    needs_norm = True

    def update(self, w, g, memory, k, step_size, norm):
        self.seen.append((w.shape, g.shape, dict(memory), k, step_size.flatten().tolist(), norm.clone(), g.clone()))
        memory["g"] = g.clone()


def test_a_rule_of_ones_own_is_trained_beside_the_others():
    history = run(draw(), [HeavyBall(0.05, 0.9), Adam(0.01), SGD(0.05, momentum=0.9)], epochs=3)
    assert_alike(history, [0], history, [2])


def test_a_rule_gets_what_its_documentation_says():
    net, seen = draw(depth=2), []
    run(net, [SGD(0.1), Noting(0.5, seen), Noting(0.25, seen)], epochs=1, batch=16)
    assert [k for *_, k, _, _, _ in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    shapes = [(1, 2, 2, 6, 5), (2, 2, 2, 6, 6), (1, 2, 2, 3, 6)]  # layers, seeds, optimisers, rows, columns
    for k in range(3):
        pieces = seen[3 * k : 3 * k + 3]
        assert [w for w, *_ in pieces] == [g for _, g, *_ in pieces] == shapes
        squares = sum(g.square().sum(dim=(0, 3, 4)) for *_, g in pieces)
        for place, (_, _, memory, _, steps, norm, _) in enumerate(pieces):
            assert steps == [0.5, 0.25]
            assert norm.shape == (2, 2, 1, 1)
            torch.testing.assert_close(norm[..., 0, 0], squares.sqrt(), rtol=1e-13, atol=0)
            if k == 0:
                assert memory == {}
            else:
                assert torch.equal(memory["g"], seen[3 * k - 3 + place][-1])


# ---- diverged members


def test_a_member_that_explodes_at_once_is_reported_and_set_back():
    net = draw(LINEAR)
    history = run(net, [Adam(0.01), SGD(1e6), SGD(0.1)], epochs=3)
    assert history.diverged.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert history.diverged.dtype == np.int64
    for curve in curves(history).values():
        assert np.isnan(curve[1:, 1]).all()
        assert np.isfinite(curve[0]).all()
        assert np.isfinite(curve[:, [0, 2]]).all()
    assert all(torch.equal(v, w) for v, w in zip(parts(history.networks[1]), parts(net), strict=True))


def test_a_member_that_explodes_later_is_set_back_to_its_last_good_epoch():
    net = draw(LINEAR)
    history, before = (run(net, [SGD(0.01), SGD(10.0), SGD(0.0)], epochs=epochs) for epochs in (4, 1))
    assert history.diverged.tolist() == [[0, 0], [2, 2], [0, 0]]
    assert before.diverged.tolist() == [[0, 0]] * 3
    for name, curve in curves(history).items():
        assert np.isnan(curve[2:, 1]).all()
        np.testing.assert_array_equal(curve[:2, 1], getattr(before, name)[:, 1])
    for w, good in zip(parts(history.networks[1]), parts(before.networks[1]), strict=True):
        assert torch.equal(w, good)
        assert w.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize(("at", "epoch"), [(1, 1), (3, 1), (4, 2), (6, 2), (12, 4), (13, 0)])
def test_one_seed_diverges_and_the_others_do_not_notice(at, epoch, value):
    """Three steps are an epoch. In the last, only the measurement after it can see what happened."""
    net = draw(TANH, biases="uniform", seeds=3)
    if value == 1e300:
        net = replace(net, activation=LINEAR)
    good = [Adam(0.01), Breaking(0.1, at=99), SGD(0.1, momentum=0.9), Clipped(0.1)]
    bad = [good[0], Breaking(0.1, at=at, value=value), *good[2:]]
    history, well = (run(net, chosen, epochs=4) for chosen in (bad, good))
    expected = np.zeros((4, 3))
    expected[1, 1] = epoch
    np.testing.assert_array_equal(history.diverged, expected)
    if not epoch:
        return assert_same(history, well)
    for name, curve in curves(history).items():
        right = getattr(well, name).copy()
        right[epoch:, 1, 1] = np.nan
        np.testing.assert_array_equal(curve, right, err_msg=name)
    last_good = run(net, good, epochs=epoch - 1).networks[1]
    for c, (trained, other) in enumerate(zip(history.networks, well.networks, strict=True)):
        for w, right, old in zip(parts(trained), parts(other), parts(last_good), strict=True):
            right = right.clone()
            if c == 1:
                right[1] = old[1]
            assert torch.equal(w, right)


def test_a_member_that_recovers_within_its_epoch_has_diverged_all_the_same():
    @dataclass(frozen=True)
    class There:
        step_size: float

        def update(self, w, g, memory, k, step_size, norm):
            if k == 1:
                memory["old"] = w.clone()
                w.fill_(math.inf)
            elif k == 2:
                w.copy_(memory["old"])

    net = draw()
    history = run(net, [There(0.1)], epochs=2)
    assert history.diverged.tolist() == [[1, 1]]
    assert np.isnan(history.test_accuracy[1:]).all()


# ---- checkpoints


class Killed(BaseException):
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "a run (1).pt"


def left(path):
    return sorted(file.name for file in path.parent.iterdir())


def interrupted(monkeypatch, epoch, *arguments, **options):
    """A run that ends right after its checkpoint of this epoch."""
    save = training._save

    def saving(*content):
        save(*content)
        if content[6] == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", saving)
        with pytest.raises(Killed):
            run(*arguments, **options)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_interrupted_run_ends_with_the_same_bits(monkeypatch, path, epoch):
    net, chosen = draw(LINEAR, biases="uniform"), [*OPTIMIZERS, SGD(1e6), SGD(10.0)]  # two that diverge
    straight = run(net, chosen, epochs=4)
    assert set(straight.diverged.flatten().tolist()) == {0, 1, 2}
    interrupted(monkeypatch, epoch, net, chosen, epochs=4, checkpoint=path)
    assert torch.load(path, weights_only=True)["epoch"] == epoch
    assert_same(run(net, chosen, epochs=4, checkpoint=path), straight)
    assert left(path) == [path.name]


def test_a_run_that_is_interrupted_again_and_again_ends_with_the_same_bits(monkeypatch, path):
    net = draw()
    for epoch in range(4):
        interrupted(monkeypatch, epoch, net, OPTIMIZERS, epochs=4, checkpoint=path)
    assert_same(run(net, OPTIMIZERS, epochs=4, checkpoint=path), run(net, OPTIMIZERS, epochs=4))


def test_a_finished_run_is_read_and_not_trained(monkeypatch, path):
    net = draw(LINEAR)
    first = run(net, [Adam(0.01), SGD(1e6)], checkpoint=path)
    content = path.read_bytes()
    monkeypatch.setattr(training._Members, "run", None)
    again = run(net, [Adam(0.01), SGD(1e6)], checkpoint=str(path))
    assert_same(again, first)
    assert again.seconds == first.seconds > 0
    assert path.read_bytes() == content
    assert left(path) == [path.name]


def test_more_epochs_go_on_with_the_same_bits(path):
    net = draw(biases="zero")
    for epochs in (0, 1, 3, 4):
        history = run(net, OPTIMIZERS, epochs=epochs, checkpoint=path)
        assert_same(history, run(net, OPTIMIZERS, epochs=epochs))
        assert left(path) == [path.name]


def test_seconds_add_up(path):
    net = draw()
    first = run(net, OPTIMIZERS, checkpoint=path)
    assert run(net, OPTIMIZERS, epochs=3, checkpoint=path).seconds > first.seconds


def test_a_checkpoint_does_not_change_the_run(path):
    net = draw()
    assert_same(run(net, OPTIMIZERS, checkpoint=path), run(net, OPTIMIZERS))


def plus_one(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] += 1
    return tensor


CHANGES = {
    "step size": lambda case: {"optimizers": [Adam(0.02), SGD(0.1)]},
    "optimiser": lambda case: {"optimizers": [Adam(0.01, beta1=0.8), SGD(0.1)]},
    "order": lambda case: {"optimizers": [SGD(0.1), Adam(0.01)]},
    "one more": lambda case: {"optimizers": [Adam(0.01), SGD(0.1), SGD(0.1)]},
    "images": lambda case: {"train_set": (plus_one(case.train_set[0]), case.train_set[1])},
    "labels": lambda case: {"train_set": (case.train_set[0], 2 - case.train_set[1])},
    "test images": lambda case: {"test_set": (plus_one(case.test_set[0]), case.test_set[1])},
    "test labels": lambda case: {"test_set": (case.test_set[0], 2 - case.test_set[1])},
    "read-in": lambda case: {"net": replace(case.net, a=plus_one(case.net.a))},
    "hidden matrix": lambda case: {
        "net": replace(case.net, hidden=(*case.net.hidden[:2], plus_one(case.net.hidden[2])))
    },
    "read-out": lambda case: {"net": replace(case.net, b=plus_one(case.net.b))},
    "biases": lambda case: {"net": replace(case.net, biases=(plus_one(case.net.biases[0]), *case.net.biases[1:]))},
    "no biases": lambda case: {"net": replace(case.net, biases=())},
    "fewer seeds": lambda case: {"net": draw(biases="uniform", seeds=1)},
    "activation": lambda case: {"net": replace(case.net, activation=RELU)},
    "seed": lambda case: {"seed": 1},
    "loss": lambda case: {"loss": "squared error"},
    "batch": lambda case: {"batch": 12},
    "measured": lambda case: {"measured": 20},
    "dtype": lambda case: {"dtype": torch.float32},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_checkpoint_of_another_run_raises(path, name):
    net = draw(biases="uniform")
    case = {"net": net, "optimizers": [Adam(0.01), SGD(0.1)], "train_set": samples(net), "test_set": samples(net, 33)}
    first = run(**case, checkpoint=path)
    content = path.read_bytes()
    with raises(f"The checkpoint {path} belongs to another run; name another file, or delete it to start again."):
        run(**(case | CHANGES[name](SimpleNamespace(**case))), checkpoint=path)
    assert path.read_bytes() == content
    assert left(path) == [path.name]
    assert_same(run(**case, checkpoint=path), first)


def test_fewer_epochs_than_the_checkpoint_has_raise(path):
    run(draw(), OPTIMIZERS, epochs=3, checkpoint=path)
    content = path.read_bytes()
    what = "belongs to a run of 3 epochs, not of 2; name another file, or delete it to start again"
    with raises(f"The checkpoint {path} {what}."):
        run(draw(), OPTIMIZERS, epochs=2, checkpoint=path)
    assert path.read_bytes() == content


class Trap:
    """What no checkpoint may do when it is read: run code."""

    def __reduce__(self):
        return exec, ("import vclib.training; vclib.training.trapped = True",)


def saved(content):
    file = BytesIO()
    torch.save(content, file)
    return file.getvalue()


DAMAGES = {
    "empty": lambda raw: b"",
    "one byte": lambda raw: raw[:1],
    "header only": lambda raw: raw[:100],
    "half": lambda raw: raw[: len(raw) // 2],
    "without its last byte": lambda raw: raw[:-1],
    "without its first": lambda raw: raw[1:],
    "zeros": lambda raw: bytes(len(raw)),
    "text": lambda raw: b"This is no checkpoint.\n" * 100,
    "random": lambda raw: np.random.default_rng(0).bytes(len(raw)),
    "a tensor": lambda raw: saved(torch.ones(3)),
    "a list": lambda raw: saved([1, 2]),
    "another dictionary": lambda raw: saved({"epoch": 1}),
    "code": lambda raw: saved({"epoch": Trap()}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_raises_and_stays(path, name):
    net = draw()
    run(net, OPTIMIZERS, checkpoint=path)
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    content = path.read_bytes()
    with raises(f"The checkpoint {path} cannot be read; delete it to start again.", DamagedCheckpoint):
        run(net, OPTIMIZERS, checkpoint=path)
    assert path.read_bytes() == content
    assert left(path) == [path.name]
    assert not hasattr(training, "trapped")
    path.unlink()
    assert_same(run(net, OPTIMIZERS, checkpoint=path), run(net, OPTIMIZERS))


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_checkpoint_survives_a_full_disk(monkeypatch, path, failing):
    """Whatever fails while a checkpoint is written, the one before it stays, and nothing lies beside it."""
    net = draw()
    run(net, OPTIMIZERS, epochs=1, checkpoint=path)
    content = path.read_bytes()

    def full(*arguments):
        if failing == "save":
            arguments[1].write(b"the first bytes")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch if failing == "save" else os, failing, full)
        with pytest.raises(OSError, match="No space left"):
            run(net, OPTIMIZERS, epochs=2, checkpoint=path)
    assert path.read_bytes() == content
    assert left(path) == [path.name]
    assert_same(run(net, OPTIMIZERS, epochs=2, checkpoint=path), run(net, OPTIMIZERS, epochs=2))


# ---- SIGKILL

KILLS, EPOCHS = 20, 8


def long_run(checkpoint=None):
    net = draw(RELU, depth=8, width=24, inputs=20, seeds=3, biases="uniform")
    return run(
        net,
        [SGD(0.01, momentum=0.9), Adam(0.001)],
        samples(net, 1200),
        epochs=EPOCHS,
        batch=16,
        measured=600,
        checkpoint=checkpoint,
    )


def child(path, log):
    """The run, on a slow disk, with a diary that a kill cannot undo."""
    torch.set_num_threads(1)
    diary = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    save, write = training._save, torch.save

    def noting(*content):
        os.write(diary, f"saving {content[6]}\n".encode())
        save(*content)
        os.write(diary, f"saved {content[6]}\n".encode())

    def slow(content, file):
        write(content, whole := BytesIO())
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        time.sleep(0.06)
        file.write(whole.getvalue()[half:])

    training._save, torch.save = noting, slow
    os.write(diary, b"started 0\n")
    long_run(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    processes, random = multiprocessing.get_context("fork"), np.random.default_rng(0)
    path, log, straight = tmp_path / "run.pt", tmp_path / "diary", tmp_path / "straight.pt"
    begun = time.perf_counter()
    calm = processes.Process(target=child, args=(straight, log))
    calm.start()
    calm.join(300)
    assert calm.exitcode == 0
    whole, end = time.perf_counter() - begun, long_run(straight)
    right = torch.load(straight, weights_only=True)
    assert_same(long_run(), end)
    log.unlink()
    kills, runs, epoch = dict.fromkeys(["started", "saved", "saving"], 0), 0, -1
    for _ in range(10 * KILLS):
        process = processes.Process(target=child, args=(path, log))
        process.start()
        process.join(random.uniform(0, 0.5 * whole))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        diary = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        finished = max([int(number) for word, number in diary if word == "saved"], default=-1)
        if path.exists():
            reached = torch.load(path, weights_only=True)["epoch"]
            assert finished <= reached <= finished + 1  # a kill may fall between the move and the diary
            assert reached >= epoch
            epoch = reached
        else:
            assert finished == -1
        kills[diary[-1][0] if diary else "started"] += process.exitcode != 0
        enough = sum(kills.values()) >= KILLS and all(kills.values())
        if process.exitcode and not enough:
            continue
        assert_same(long_run(path), end)  # trains what is left, if anything is
        content = torch.load(path, weights_only=True)
        assert content["settings"] == right["settings"]
        assert all(torch.equal(v, w) for v, w in zip(content["blocks"], right["blocks"], strict=True))
        for group, others in zip(content["memories"], right["memories"], strict=True):
            for memory, other in zip(group, others, strict=True):
                assert memory.keys() == other.keys()
                assert all(torch.equal(memory[name], other[name]) for name in memory)
        if enough:
            break
        runs, epoch = runs + 1, -1
        path.unlink()
        log.unlink()
    assert sum(kills.values()) >= KILLS
    assert all(kills.values()), kills  # before the first line, in training, and while saving


# ---- bad input


LIST = "Give a list of optimisers such as [SGD(0.1), Adam(1e-3)], not {}."
TRAIN_SET, TEST_SET = "The training set is images (n, 5) and labels (n,), not {}.", "The test set is images (n, 5) and "
LABELS = "The labels of the {} set are integers from 0 to 2."
X, Y = torch.zeros(48, 5), torch.zeros(48, dtype=torch.int64)
BAD = {
    "no optimisers": ({"optimizers": []}, LIST.format("()")),
    "a name": ({"optimizers": ["adam"]}, LIST.format("('adam',)")),
    "a rule without a step size": (
        {"optimizers": [SimpleNamespace(update=print)]},
        LIST.format(f"({SimpleNamespace(update=print)!r},)"),
    ),
    "one good, one bad": ({"optimizers": [SGD(0.5), 0.5]}, LIST.format("(SGD(step_size=0.5, momentum=0.0), 0.5)")),
    "loss": ({"loss": "hinge"}, "The loss 'hinge' is unknown; choose one of cross-entropy, squared error."),
    "epochs below 0": ({"epochs": -1}, "epochs is a whole number, at least 0, not -1."),
    "half an epoch": ({"epochs": 0.5}, "epochs is a whole number, at least 0, not 0.5."),
    "no batch": ({"batch": 0}, "batch is a whole number, at least 1, not 0."),
    "a text for a batch": ({"batch": "16"}, "batch is a whole number, at least 1, not '16'."),
    "seed below 0": ({"seed": -1}, "seed is a whole number, at least 0, not -1."),
    "no seed": ({"seed": None}, "seed is a whole number, at least 0, not None."),
    "nothing measured": ({"measured": 0}, "measured is a whole number, at least 1, not 0."),
    "infinitely many measured": ({"measured": math.inf}, "measured is a whole number, at least 1, not inf."),
    "fewer pixels": ({"train_set": (X[:, :4], Y)}, TRAIN_SET.format("(48, 4) and (48,)")),
    "images in two dimensions": ({"train_set": (X.view(8, 6, 5), Y)}, TRAIN_SET.format("(8, 6, 5) and (48,)")),
    "fewer labels": ({"train_set": (X, Y[1:])}, TRAIN_SET.format("(48, 5) and (47,)")),
    "one-hot labels": ({"train_set": (X, X[:, :3])}, TRAIN_SET.format("(48, 5) and (48, 3)")),
    "no images": ({"train_set": (X[:0], Y[:0])}, TRAIN_SET.format("(0, 5) and (0,)")),
    "fewer test pixels": ({"test_set": (X[:, :4], Y)}, f"{TEST_SET}labels (n,), not (48, 4) and (48,)."),
    "no test images": ({"test_set": (X[:0], Y[:0])}, f"{TEST_SET}labels (n,), not (0, 5) and (0,)."),
    "labels that are no integers": ({"train_set": (X, Y.double())}, LABELS.format("training")),
    "a label below 0": ({"train_set": (X, Y - 1)}, LABELS.format("training")),
    "a label too many": ({"train_set": (X, Y + 3)}, LABELS.format("training")),
    "a test label too many": ({"test_set": (X, Y + 3)}, LABELS.format("test")),
    "test labels that are no integers": ({"test_set": (X, Y.float())}, LABELS.format("test")),
    "a batch too large": ({"batch": 49}, "A batch of 49 needs at least as many training images, not 48."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_before_anything_is_written(path, name):
    change, sentence = BAD[name]
    good = {"net": draw(), "optimizers": [SGD(0.1)], "train_set": (X, Y), "test_set": (X, Y)}
    run(**good)
    with raises(sentence):
        run(**(good | change), checkpoint=path)
    assert not path.parent.exists()


@pytest.mark.parametrize("optimizer", [SGD, RMSprop, Adam, SignDescent, Normalized, Clipped])
@pytest.mark.parametrize("size", [-0.1, math.inf, math.nan])
def test_a_step_size_that_is_none_raises(optimizer, size):
    with raises(f"The step_size of {optimizer.__name__} is a number from 0, not {size}."):
        optimizer(size)


@pytest.mark.parametrize(
    ("optimizer", "name"), [(SGD, "momentum"), (RMSprop, "beta2"), (Adam, "beta1"), (Adam, "beta2")]
)
@pytest.mark.parametrize("share", [-0.1, 1.0, 2, math.nan])
def test_a_share_outside_of_its_range_raises(optimizer, name, share):
    with raises(f"The {name} of {optimizer.__name__} is at least 0 and below 1, not {share}."):
        optimizer(0.1, **{name: share})
    optimizer(0.1, **{name: 0})


@pytest.mark.parametrize(
    ("optimizer", "name"), [(RMSprop, "eps"), (Adam, "eps"), (Adam, "weight_decay"), (Clipped, "max_norm")]
)
@pytest.mark.parametrize("value", [-1e-8, math.inf, math.nan, "small"])
def test_a_number_below_zero_raises(optimizer, name, value):
    with raises(f"The {name} of {optimizer.__name__} is a number from 0, not {value!r}."):
        optimizer(0.1, **{name: value})


def test_an_optimiser_without_its_list_raises():
    with raises(LIST.format("SGD(step_size=0.1, momentum=0.0)")):
        run(draw(), SGD(0.1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_may_be_any_integers_and_sets_numpy_arrays(dtype):
    net = draw()
    x, y = samples(net)
    assert_same(run(net, OPTIMIZERS, (x.numpy(), y.to(dtype).numpy())), run(net, OPTIMIZERS, (x, y)))


def test_numbers_of_numpy_are_the_same_run(path):
    net = draw()
    first = run(net, [SGD(0.1), Adam(0.01)], batch=16, checkpoint=path)
    again = run(net, [SGD(np.float64(0.1)), Adam(np.float64(0.01))], batch=np.int64(16), checkpoint=path)
    assert_same(again, first)


def test_a_flipped_bit_is_noticed(path):
    net = draw()
    run(net, OPTIMIZERS, checkpoint=path)
    raw = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(raw), size=40):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with raises(f"The checkpoint {path} cannot be read; delete it to start again.", DamagedCheckpoint):
            run(net, OPTIMIZERS, checkpoint=path)


def test_a_checkpoint_fits_pieces_of_any_size(monkeypatch, path):
    net = draw(depth=7, biases="uniform")
    monkeypatch.setattr(training, "CHUNK", 72)
    run(net, OPTIMIZERS, epochs=1, checkpoint=path)
    monkeypatch.setattr(training, "CHUNK", 2**18)
    assert_same(run(net, OPTIMIZERS, epochs=3, checkpoint=path), run(net, OPTIMIZERS, epochs=3))


# ---- convolutional networks


def convolutional(kind, **options):
    common = {"inputs": 2, "outputs": 3, "law": he, "activation": "relu", "seeds": 2, "generator": rng(4)} | options
    if kind == "fcn":
        return fcn(depth=3, channels=4, **common)
    return stripped_resnet(blocks=(1, 1, 1, 1), base=2, **common)


def pictures(n, seed=5):
    x = torch.randn(n, 2, 8, 8, generator=rng(seed), dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=rng(seed + 1))


def by_torch(net, s, make, x, y, epochs, batch, seed):
    """Seed s trained alone by torch.optim on the same batches."""
    names = [f.name for f in fields(net) if f.name in {"a", "b", "hidden", "shortcuts"}]
    parts = {name: getattr(net, name) for name in names}
    leaves = {
        name: tuple(w[[s]].clone().requires_grad_() for w in (part if isinstance(part, tuple) else (part,)))
        for name, part in parts.items()
    }
    optimizer = make([w for part in leaves.values() for w in part])
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([seed, s, epoch]).permutation(len(x))
        for step in range(len(x) // batch):
            index = order[step * batch : (step + 1) * batch]
            own = {name: part if isinstance(parts[name], tuple) else part[0] for name, part in leaves.items()}
            outputs = replace(net, **own)(x[index])[0]
            outputs = outputs.mean(dim=(2, 3)) if outputs.ndim == 4 else outputs
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(outputs, y[index]).backward()
            optimizer.step()
    return leaves


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fcn", {}),
        ("fcn", {"batch_norm": True, "skip": 3}),
        ("resnet", {}),
        ("resnet", {"skip": True, "stem": "imagenet"}),
    ],
)
def test_convolutional_ensembles_are_single_runs_of_torch_optim(kind, options):
    net, (x, y) = convolutional(kind, **options), pictures(24)
    rules = [SGD(0.05, momentum=0.9), Adam(0.01)]
    made = [lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9), lambda w: torch.optim.Adam(w, lr=0.01)]
    history = train(net, rules, (x, y), (x, y), epochs=2, batch=8, seed=3, dtype=torch.float64)
    for c, make in enumerate(made):
        trained = history.networks[c]
        for s in range(2):
            expected = by_torch(net, s, make, x, y, epochs=2, batch=8, seed=3)
            for name, part in expected.items():
                found = getattr(trained, name)
                for w, v in zip(part, found if isinstance(found, tuple) else (found,), strict=True):
                    torch.testing.assert_close(v[[s]], w.detach(), rtol=1e-7, atol=1e-10)
            own = replace(trained, **{name: select(getattr(trained, name), s) for name in expected})
            outputs = own(x)[0]
            outputs = outputs.mean(dim=(2, 3)) if outputs.ndim == 4 else outputs
            loss = torch.nn.functional.cross_entropy(outputs, y).item()
            assert history.train_loss[-1, c, s] == pytest.approx(loss, rel=1e-6)


def select(part, s):
    return tuple(w[[s]] for w in part) if isinstance(part, tuple) else part[[s]]


def test_a_convolutional_run_goes_on_where_it_was(tmp_path):
    net, data = convolutional("resnet", skip=True), (pictures(24), pictures(10))
    options = {"batch": 8, "checkpoint": tmp_path / "run.pt"}
    train(net, [Adam(0.01)], *data, epochs=1, **options)
    resumed = train(net, [Adam(0.01)], *data, epochs=3, **options)
    straight = train(net, [Adam(0.01)], *data, epochs=3, batch=8)
    assert np.array_equal(resumed.train_loss, straight.train_loss)
    with pytest.raises(ValueError, match="belongs to another run"):
        train(replace(net, padding="circular"), [Adam(0.01)], *data, epochs=3, **options)


def test_images_of_convolutional_networks_have_rows_and_columns():
    net, (x, y) = convolutional("fcn"), pictures(8)
    with pytest.raises(ValueError, match=r"^The training set is images \(n, 2, rows, columns\) and labels \(n,\), not"):
        train(net, [SGD(0.1)], (x.flatten(1), y), (x, y), epochs=1, batch=8)
