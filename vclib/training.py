r"""The ensemble trainer: many seeds and many optimisers, trained side by side as one batched network.

A *member* of an ensemble is one seed with one optimiser. All members share every matrix product and every line of
Python, and nothing else: each has its own weights, its own order of the samples (the seed's) and its own step size.
Members of the same seed start from the same weights and see the same batches. On two cores forty narrow networks take
the time of six that are trained one after another (benchmarks/training.py).

The optimisers are those of torch.optim, to rounding. A rule of your own is an object with a ``step_size`` and a method
``update``: see :class:`SGD`.
"""

import hashlib
import io
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .networks import FCN, MLP, StrippedResNet
from .runtime import progress

LOSSES = ("cross-entropy", "squared error")
CURVES = ("train_loss", "train_accuracy", "gradient_norm", "test_loss", "test_accuracy")
CHUNK = 2**18  # numbers that an optimiser touches at once on a processor: they stay in its cache


class DamagedCheckpoint(RuntimeError):
    """A checkpoint cannot be read; the message names it and says what to do."""


def _check(optimizer: Any, *shares: str) -> None:
    """All numbers of an optimiser are at least 0 and finite, and its ``shares`` are below 1."""
    for name, value in vars(optimizer).items():
        most = 1 if name in shares else float("inf")
        if not isinstance(value, Real) or not 0 <= value < most:
            accepted = "at least 0 and below 1" if name in shares else "a number from 0"
            raise ValueError(f"The {name} of {type(optimizer).__name__} is {accepted}, not {value!r}.")


def _root(v: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """The root of v, to which eps will be added.

    Roots of zeros, which the gradients of dead units leave, take a processor 20 times as long as others. So the
    smallest normal number is added to v first, wherever eps is so much larger than its root that no bit of the sum
    changes.
    """
    of = torch.finfo(v.dtype)
    return torch.add(v, of.tiny if of.tiny**0.5 < eps * of.eps / 8 else 0.0, out=out).sqrt_()


@dataclass(frozen=True)
class SGD:
    r"""Stochastic gradient descent: :math:`m \leftarrow \mu m + g,\ w \leftarrow w - \eta m` with momentum :math:`\mu`.

    A rule changes one piece of the weights ``w`` in place: ``update(w, g, memory, k, step_size, norm)`` gets the piece
    of the gradient ``g`` that belongs to it, which it may overwrite, a dictionary ``memory`` for this piece that is
    empty before step k = 1, and two tensors that broadcast to the members: their step sizes, and the norms of their
    whole gradients (None unless the class says ``needs_norm = True``). What it puts into ``memory`` must be tensors of
    the shape of ``w``.
    Rules are told apart by their attributes, so a rule is best a frozen dataclass.

    Raises ValueError if a number is negative or not finite, or a share such as the momentum is not below 1. So do the
    optimisers below.

    Source: torch.optim.SGD.

    >>> SGD(0.1, momentum=0.9)
    SGD(step_size=0.1, momentum=0.9)
    """

    step_size: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "momentum")

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        if self.momentum:
            g = memory["m"].mul_(self.momentum).add_(g) if memory else memory.setdefault("m", g.clone())
        w.addcmul_(g, step_size, value=-1)


@dataclass(frozen=True)
class RMSprop:
    r"""Divide by a running size: :math:`v \leftarrow \beta_2 v + (1-\beta_2) g^2`, from 0, and

    .. math:: w \leftarrow w - \eta\,\frac{g}{\sqrt v + \epsilon}.

    torch.optim.RMSprop calls :math:`\beta_2` ``alpha``; its default 0.99 is also ours.
    """

    step_size: float
    beta2: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self, "beta2")

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        v = memory["v"] if memory else memory.setdefault("v", torch.zeros_like(g))
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        w.sub_(g.mul_(step_size).div_(_root(v, self.eps).add_(self.eps)))


@dataclass(frozen=True)
class Adam:
    r"""Averages :math:`m` of g and :math:`v` of g², both corrected for their start at 0, and

    .. math:: w \leftarrow w - \eta\,\frac{m/(1-\beta_1^k)}{\sqrt{v/(1-\beta_2^k)} + \epsilon}.

    With a ``weight_decay`` :math:`\lambda` it is AdamW: the weights are first multiplied by :math:`1 - \eta\lambda`.

    Source: Kingma and Ba (2015), Loshchilov and Hutter (2019); torch.optim.Adam and torch.optim.AdamW.
    """

    step_size: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "beta1", "beta2")

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        if not memory:
            memory.update(m=torch.zeros_like(g), v=torch.zeros_like(g))
        if self.weight_decay:
            w.mul_(1 - step_size * self.weight_decay)
        m, v = memory["m"].lerp_(g, 1 - self.beta1), memory["v"].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        size = _root(v, self.eps, out=g).div_((1 - self.beta2**k) ** 0.5).add_(self.eps)  # g is no longer needed
        w.sub_(torch.div(m, size, out=size).mul_(step_size / (1 - self.beta1**k)))


@dataclass(frozen=True)
class SignDescent:
    r""":math:`w \leftarrow w - \eta \operatorname{sign}(g)`: RMSprop without memory and without epsilon."""

    step_size: float

    def __post_init__(self) -> None:
        _check(self)

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        w.sub_(torch.sign(g).mul_(step_size))


@dataclass(frozen=True)
class Normalized:
    r""":math:`w \leftarrow w - \eta\, g/\|g\|` with the norm of the member's whole gradient; no step where it is 0."""

    step_size: float
    needs_norm = True

    def __post_init__(self) -> None:
        _check(self)

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        w.sub_(g * (step_size / torch.where(norm == 0, 1.0, norm)))


@dataclass(frozen=True)
class Clipped:
    r""":math:`w \leftarrow w - \eta g\min(1, \mathtt{max\_norm}/(\|g\| + 10^{-6}))`, as torch's ``clip_grad_norm_``."""

    step_size: float
    max_norm: float = 1.0
    needs_norm = True

    def __post_init__(self) -> None:
        _check(self)

    def update(self, w, g, memory, k, step_size, norm) -> None:
        """One step."""
        w.sub_(g * (step_size * (self.max_norm / (norm + 1e-6)).clamp(max=1.0)))


@dataclass(frozen=True, eq=False)
class History:
    """How an ensemble of C optimisers and S seeds trained.

    ``train_loss``, ``train_accuracy``, ``gradient_norm``, ``test_loss`` and ``test_accuracy`` are float64 arrays
    (epochs + 1, C, S): before training, then after each epoch. ``diverged`` (C, S) is the epoch in which a member's
    loss was no longer finite, and 0 where that did not happen; from this epoch on its curves are NaN.
    ``networks`` has the final networks, one network of S seeds for each optimiser, of the kind that was trained, on the
    device and in the dtype of the training; a diverged member is there as it was before that epoch. ``seconds`` is what
    training took, up to the last whole epoch before each interruption.
    """

    train_loss: np.ndarray
    train_accuracy: np.ndarray
    gradient_norm: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    diverged: np.ndarray
    networks: tuple[MLP | FCN | StrippedResNet, ...]
    seconds: float


def train(
    net: MLP | FCN | StrippedResNet,
    optimizers: Sequence[Any],
    train_set: tuple[torch.Tensor, torch.Tensor],
    test_set: tuple[torch.Tensor, torch.Tensor],
    *,
    epochs: int,
    batch: int = 128,
    loss: str = "cross-entropy",
    seed: int = 0,
    measured: int = 5000,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> History:
    r"""Train every seed of ``net`` with every optimiser, all at once, and return their :class:`History`.

    Sets are images and labels (n,), integers below the number of outputs. Images are (n, inputs) for an MLP and
    (n, inputs, rows, columns) for convolutional networks; the classes' outputs of an FCN are the means of its output
    images. Batch normalisation, where a network has it, always takes the moments of the batch. The loss is the
    ``"cross-entropy"`` of the outputs, :math:`-\frac1n\sum_i\ln\operatorname{softmax}(F(x_i))_{y_i}`, or the
    ``"squared error"`` :math:`\frac1{2n}\sum_i\|F(x_i) - e_{y_i}\|^2`. All weights are trained, and the biases if
    there are any. ``net`` itself is not changed.

    In every epoch, seed number s goes once through the training set in an order drawn from (``seed``, s, epoch), in
    batches of ``batch``; what does not fill the last batch is left out of this epoch. Curves of the training set are
    measured on its first ``measured`` samples, those of the test set on all of it. ``gradient_norm`` is the norm of
    the gradient of the loss on the measured samples, by all trained numbers.

    A member whose loss stops being finite is set back to the end of the last good epoch and stays there.

    ``checkpoint`` names a file. It is rewritten after each epoch, atomically: if the run is killed, the same call goes
    on from the last whole epoch, and ends with the same bits on a processor (with the same number of threads). A call
    with more ``epochs`` goes on from a finished run.

    Raises ValueError, which says what is accepted, if an argument or a label is out of its range or the checkpoint
    belongs to another run, and DamagedCheckpoint if it cannot be read.

    >>> from vclib import initialization, networks
    >>> net = networks.mlp(depth=2, width=8, inputs=2, outputs=2, law=initialization.he, activation="relu", seeds=3,
    ...                    generator=torch.Generator().manual_seed(0))
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    >>> data = x, (x[:, 0] > 0).long()
    >>> history = train(net, [SGD(0.1), Adam(0.01)], data, data, epochs=20, batch=16)
    >>> history.train_accuracy.shape, bool(history.train_accuracy[-1].mean() > 0.9)
    ((21, 2, 3), True)
    """
    if not isinstance(optimizers, Sequence):
        raise ValueError(f"Give a list of optimisers such as [SGD(0.1), Adam(1e-3)], not {optimizers!r}.")
    optimizers = tuple(optimizers)
    train_set, test_set = (tuple(torch.as_tensor(part) for part in both) for both in (train_set, test_set))
    _check_arguments(net, optimizers, train_set, test_set, epochs, batch, loss, seed, measured)
    epochs, batch, seed, measured = int(epochs), int(batch), int(seed), int(measured)
    device = net.a.device if device is None else device
    (x, y), test = ((images.to(device, dtype), labels.to(device).long()) for images, labels in (train_set, test_set))
    kind = _Members if isinstance(net, MLP) else _ConvolutionalMembers
    members = kind(net, len(optimizers), loss, device, dtype)
    groups = _groups(optimizers, members)
    shape = (epochs + 1, len(optimizers), members.seeds)
    curves = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in CURVES}
    diverged = torch.zeros(shape[1:], dtype=torch.int64)
    path, begun = Path(checkpoint) if checkpoint is not None else None, time.perf_counter()
    settings = _settings(net, optimizers, train_set, test_set, batch, loss, seed, measured, dtype) if path else ""
    done, seconds = -1, 0.0
    if path and path.exists():
        done, seconds = _resume(path, settings, members, groups, curves, diverged)
    begun -= seconds
    steps, first = len(x) // batch, max(done + 1, 1)
    if done < 0:
        _measure(members, curves, diverged, 0, (x[:measured], y[:measured]), test)
        _save(path, settings, members, groups, curves, diverged, 0, time.perf_counter() - begun)
    for at in progress(range((first - 1) * steps, epochs * steps), f"{len(optimizers)} x {members.seeds} networks"):
        epoch, step = at // steps + 1, at % steps
        if step == 0:
            before = [block.clone() for block in members.blocks]
            order = torch.from_numpy(_orders(seed, members.seeds, epoch, len(x))).to(device)
            finite = torch.ones(members.seeds, len(optimizers), dtype=torch.bool, device=device)
        index = order[:, step * batch : (step + 1) * batch]
        losses, _ = members.run(x[index], y[index])
        finite &= losses.isfinite()
        for group in groups:
            group.step(at + 1)
        if step == steps - 1:
            bad = (diverged > 0) | ~finite.T.cpu()
            _measure(members, curves, bad, epoch, (x[:measured], y[:measured]), test)
            bad |= curves["train_loss"][epoch].isnan()
            diverged[bad & (diverged == 0)] = epoch
            for s, c in bad.T.nonzero().tolist():
                for block, old in zip(members.blocks, before, strict=True):
                    block[:, s, c] = old[:, s, c]
            seconds = time.perf_counter() - begun
            _save(path, settings, members, groups, curves, diverged, epoch, seconds)
    numbers = {name: curve.numpy() for name, curve in curves.items()}
    return History(**numbers, diverged=diverged.numpy(), networks=members.networks(net), seconds=seconds)


def _check_arguments(net, optimizers, train_set, test_set, epochs, batch, loss, seed, measured) -> None:
    if not optimizers or not all(hasattr(o, "update") and hasattr(o, "step_size") for o in optimizers):
        raise ValueError(f"Give a list of optimisers such as [SGD(0.1), Adam(1e-3)], not {optimizers!r}.")
    if loss not in LOSSES:
        raise ValueError(f"The loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
    whole = {"epochs": (epochs, 0), "batch": (batch, 1), "seed": (seed, 0), "measured": (measured, 1)}
    for name, (value, least) in whole.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is a whole number, at least {least}, not {value!r}.")
    inputs, outputs = net.a.shape[2], net.b.shape[1]
    dimensions, form = (2, f"(n, {inputs})") if isinstance(net, MLP) else (4, f"(n, {inputs}, rows, columns)")
    for name, (x, y) in {"training": train_set, "test": test_set}.items():
        if x.ndim != dimensions or x.shape[1] != inputs or y.shape != x.shape[:1] or not len(x):
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"The {name} set is images {form} and labels (n,), not {shapes}.")
        if y.is_floating_point() or not (y.min() >= 0 and y.max() < outputs):
            raise ValueError(f"The labels of the {name} set are integers from 0 to {outputs - 1}.")
    if batch > len(train_set[0]):
        raise ValueError(f"A batch of {batch} needs at least as many training images, not {len(train_set[0])}.")


def _orders(seed: int, seeds: int, epoch: int, n: int) -> np.ndarray:
    """The order of the samples of each seed in this epoch, (seeds, n)."""
    return np.stack([np.random.default_rng([seed, s, epoch]).permutation(n) for s in range(seeds)])


# ---- all members as one network


class _Members:
    """Weights and gradients of all members, one forward and one backward pass written out.

    A *block* collects layers of one shape: tensors (layers, seeds, optimisers, rows, columns). There are the read-in,
    the hidden matrices and the read-out, and, if the network has biases, those of the hidden units and the outputs.
    """

    def __init__(self, net: MLP, copies: int, loss: str, device: torch.device, dtype: torch.dtype) -> None:
        def spread(layers: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.stack([w.to(device, dtype) for w in layers])[:, :, None].repeat(1, 1, copies, 1, 1)

        self.seeds, self.copies, self.loss, self.activation = len(net.a), copies, loss, net.activation
        self.blocks = [spread([net.a]), spread(net.hidden), spread([net.b])]
        if net.biases:
            self.blocks += [spread([b[..., None] for b in part]) for part in (net.biases[:-1], net.biases[-1:])]
        self.gradients = [torch.zeros_like(block) for block in self.blocks]
        self.h = torch.empty(0, device=device, dtype=dtype)

    def run(self, x: torch.Tensor, y: torch.Tensor, *, backward: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and accuracy of every member, (seeds, optimisers); ``backward`` fills the gradients.

        Samples are (seeds, n, inputs) and (seeds, n), or (1, n, ...) for all seeds alike.
        """
        (a, hidden, b, *bias), n = self.blocks, x.shape[1]
        depth, width, together = len(hidden), hidden.shape[-1], self.seeds * self.copies
        if self.h.shape[-1] != n:
            self.h = self.h.new_empty(depth + 1, together, width, n)
        h, by_seed = self.h.unbind(), (self.seeds, self.copies * width, -1)
        hidden = hidden.view(depth, together, width, width).unbind()
        x = x.expand(self.seeds, -1, -1)
        torch.bmm(a.view(by_seed), x.mT, out=h[0].view(by_seed))
        for k in range(depth + 1):
            if k:
                torch.bmm(hidden[k - 1], h[k - 1], out=h[k])
            if bias:
                h[k].add_(bias[0][k].view(together, width, 1))
            self._activate(h[k])
        outputs = torch.bmm(b.view(together, -1, width), h[depth])
        if bias:
            outputs += bias[1].view(together, -1, 1)
        labels = y[:, None].expand(self.seeds, self.copies, n).reshape(together, 1, n)
        right = (outputs.argmax(dim=1, keepdim=True) == labels).double().mean(dim=(1, 2))
        losses, delta = self._loss(outputs, labels)
        if backward:
            self._backward(x, delta / n)
        return losses.view(self.seeds, -1), right.view(self.seeds, -1)

    def _loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The members' losses, and n times the derivative by the outputs (members, classes, n)."""
        one_hot = torch.zeros_like(outputs).scatter_(1, labels, 1.0)
        if self.loss == "squared error":
            delta = outputs - one_hot
            return 0.5 * delta.square().sum(dim=1).mean(dim=1), delta
        log_p = outputs.log_softmax(dim=1)
        return -log_p.gather(1, labels).mean(dim=(1, 2)), log_p.exp() - one_hot

    def _activate(self, h: torch.Tensor) -> None:
        if self.activation != "linear":
            h.relu_() if self.activation == "relu" else h.tanh_()

    def _through(self, delta: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Multiply by the derivative of the activation, in place; h is what came out of it."""
        if self.activation == "relu":
            torch.ops.aten.threshold_backward.grad_input(delta, h, 0, grad_input=delta)  # 9 times as fast as h > 0
        elif self.activation == "tanh":
            delta.addcmul_(delta, h.square(), value=-1.0)
        return delta

    def _backward(self, x: torch.Tensor, delta: torch.Tensor) -> None:
        (_, hidden, b, *_), (to_a, to_hidden, to_b, *to_bias) = self.blocks, self.gradients
        h, before, (layers, together, width, _) = self.h.unbind(), self.h.mT.unbind(), self.h.shape
        across = hidden.view(-1, together, width, width).mT.unbind()
        to_hidden = to_hidden.view(-1, together, width, width).unbind()
        torch.bmm(delta, before[-1], out=to_b.view(together, -1, width))
        if to_bias:
            torch.sum(delta, dim=2, out=to_bias[1].view(together, -1))
        below = torch.empty_like(h[0])
        delta = torch.bmm(b.view(together, -1, width).mT, delta)
        for k in range(layers - 1, -1, -1):
            self._through(delta, h[k])
            if to_bias:
                torch.sum(delta, dim=2, out=to_bias[0][k].view(together, width))
            if k:
                torch.bmm(delta, before[k - 1], out=to_hidden[k - 1])
                torch.bmm(across[k - 1], delta, out=below)
                delta, below = below, delta
        by_seed = (self.seeds, self.copies * width, -1)
        torch.bmm(delta.view(by_seed), x, out=to_a.view(by_seed))

    def networks(self, net: MLP) -> tuple[MLP, ...]:
        """One network of all seeds for each optimiser."""

        def of(c: int) -> MLP:
            a, hidden, b, *bias = (block[:, :, c].clone() for block in self.blocks)
            biases = tuple(layer[..., 0] for part in bias for layer in part)
            return replace(net, a=a[0], hidden=tuple(hidden), b=b[0], biases=biases)

        return tuple(of(c) for c in range(self.copies))


class _ConvolutionalMembers(_Members):
    """The same for convolutional networks, by automatic differentiation.

    Layers of one shape are a block; the rows of a filter are its outputs, the columns its inputs times its pixels.
    """

    def __init__(
        self, net: FCN | StrippedResNet, copies: int, loss: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.seeds, self.copies, self.loss, self.net = len(net.a), copies, loss, net
        layers, self.shapes = _layers(net), {}
        for number, w in enumerate(layers):
            self.shapes.setdefault(w.shape[1:], []).append(number)
        self.blocks = [
            torch.stack([layers[number].to(device, dtype) for number in numbers])[:, :, None]
            .repeat_interleave(copies, dim=2)
            .flatten(4)
            for numbers in self.shapes.values()
        ]
        self.gradients = [torch.zeros_like(block) for block in self.blocks]

    def run(self, x: torch.Tensor, y: torch.Tensor, *, backward: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        n, together = x.shape[1], self.seeds * self.copies
        leaves = [block.detach().requires_grad_(backward) for block in self.blocks]
        # Images that differ from seed to seed stand beside each other as channels, those for all seeds only once.
        x = x[0] if len(x) == 1 else x.repeat_interleave(self.copies, dim=0).transpose(0, 1).flatten(1, 2)
        with torch.set_grad_enabled(backward):
            outputs = self._net([block.flatten(1, 2) for block in leaves]).outputs_of(x)
            outputs = outputs.flatten(3).mean(dim=3) if isinstance(self.net, FCN) else outputs
        labels = y[:, None].expand(self.seeds, self.copies, n).reshape(together, 1, n)
        right = (outputs.argmax(dim=2)[:, None] == labels).double().mean(dim=(1, 2))
        losses, delta = self._loss(outputs.detach().mT, labels)
        if backward:
            found = torch.autograd.grad(outputs, leaves, delta.mT / n)
            for gradient, new in zip(self.gradients, found, strict=True):
                gradient.copy_(new)
        return losses.view(self.seeds, -1), right.view(self.seeds, -1)

    def networks(self, net: FCN | StrippedResNet) -> tuple[FCN | StrippedResNet, ...]:
        return tuple(self._net([block[:, :, c].clone() for block in self.blocks]) for c in range(self.copies))

    def _net(self, blocks: Sequence[torch.Tensor]) -> FCN | StrippedResNet:
        """The network with these weights, one tensor (layers, members, rows, columns) for each shape."""
        layers = {}
        for (shape, numbers), block in zip(self.shapes.items(), blocks, strict=True):
            layers |= dict(zip(numbers, block.unflatten(3, shape[1:]).unbind(), strict=True))
        a, b, *hidden = (layers[number] for number in range(len(layers)))
        depth = len(self.net.hidden)
        more = {"shortcuts": tuple(hidden[depth:])} if hidden[depth:] else {}
        return replace(self.net, a=a, hidden=tuple(hidden[:depth]), b=b, **more)


def _layers(net: MLP | FCN | StrippedResNet) -> list[torch.Tensor]:
    """All tensors that are trained."""
    return [net.a, net.b, *net.hidden, *getattr(net, "biases", ()), *getattr(net, "shortcuts", ())]


class _Group:
    """Neighbouring optimisers that differ only in their step size, and what they remember."""

    def __init__(self, optimizers: Sequence[Any], columns: slice, members: _Members) -> None:
        def rows(block: torch.Tensor) -> range:
            of_a_layer = block[0, :, columns].numel()
            return range(0, len(block), max(1, CHUNK // of_a_layer) if block.device.type == "cpu" else len(block))

        self.rule, self.step_size = optimizers[0], [o.step_size for o in optimizers]
        self.step_size = torch.tensor(self.step_size, dtype=torch.float64).to(members.blocks[0])[:, None, None]
        self.columns, self.members = columns, members
        self.pieces = [  # for each block: weights, gradients and memory, a few layers at a time
            [(w[i : i + r.step, :, columns], g[i : i + r.step, :, columns], {}) for i in r]
            for w, g in zip(members.blocks, members.gradients, strict=True)
            for r in [rows(w)]
        ]

    def step(self, k: int) -> None:
        norm = None
        if getattr(self.rule, "needs_norm", False):
            norm = _norm(self.members.gradients, self.columns)[:, :, None, None]
        for w, g, memory in itertools.chain.from_iterable(self.pieces):
            self.rule.update(w, g, memory, k, self.step_size, norm)

    def memories(self) -> list[dict[str, torch.Tensor]]:
        """What the rule remembers, one dictionary for each block."""
        found = [[memory for _, _, memory in pieces] for pieces in self.pieces]
        return [{name: torch.cat([m[name] for m in block]) for name in block[0]} for block in found]

    def remember(self, memories: Sequence[dict[str, torch.Tensor]]) -> None:
        """Put back what :meth:`memories` returned."""
        for pieces, whole in zip(self.pieces, memories, strict=True):
            at = 0
            for w, _, memory in pieces:
                memory.update({name: tensor[at : at + len(w)].clone() for name, tensor in whole.items()})
                at += len(w)


def _describe(optimizer: Any, *, without: str = "") -> str:
    """Name and numbers of an optimiser, as text; numpy's numbers as Python's."""
    numbers = getattr(optimizer, "__dict__", {"repr": repr(optimizer)}).items()
    numbers = {k: v.item() if isinstance(v, np.generic) else v for k, v in numbers if k != without}
    return f"{type(optimizer).__qualname__}({numbers})"


def _groups(optimizers: Sequence[Any], members: _Members) -> list[_Group]:
    groups, at = [], 0
    for _, same in itertools.groupby(optimizers, key=lambda o: _describe(o, without="step_size")):
        same = list(same)
        groups.append(_Group(same, slice(at, at + len(same)), members))
        at += len(same)
    return groups


def _norm(gradients: Sequence[torch.Tensor], columns: slice = slice(None)) -> torch.Tensor:
    """The norm over all blocks, (seeds, optimisers)."""
    norms = [torch.linalg.vector_norm(block[:, :, columns], dim=(0, 3, 4)) for block in gradients]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _measure(members: _Members, curves, out: torch.Tensor, epoch: int, train_set, test_set) -> None:
    """Write one row of all curves; those of members that are ``out`` stay NaN."""
    total = [torch.zeros_like(block) for block in members.gradients]
    for name, (x, y), backward in (("train", train_set, True), ("test", test_set, False)):
        loss = accuracy = 0.0
        for part, labels in zip(x.split(512), y.split(512), strict=True):
            share = len(part) / len(x)
            parts = members.run(part[None], labels[None], backward=backward)
            loss, accuracy = loss + share * parts[0].double(), accuracy + share * parts[1]
            if backward:
                for t, g in zip(total, members.gradients, strict=True):
                    t.add_(g, alpha=share)
        curves[f"{name}_loss"][epoch], curves[f"{name}_accuracy"][epoch] = loss.T.cpu(), accuracy.T.cpu()
    curves["gradient_norm"][epoch] = _norm(total).T.cpu().double()
    lost = out.bool() | ~curves["train_loss"][epoch].isfinite()
    for curve in curves.values():
        curve[epoch][lost] = torch.nan


# ---- saving and going on


def _settings(net, optimizers, train_set, test_set, batch, loss, seed, measured, dtype) -> str:
    """Everything that decides the course of a run, as text."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (*train_set, *test_set, *_layers(net)):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    rules = [_describe(optimizer) for optimizer in optimizers]
    form = {name: value for name, value in vars(net).items() if name not in {"a", "b", "hidden", "biases", "shortcuts"}}
    return repr((digest.hexdigest(), form, rules, batch, loss, seed, measured, str(dtype)))


def _save(path: Path | None, settings: str, members: _Members, groups, curves, diverged, epoch, seconds) -> None:
    """Write the checkpoint and its digest beside its place, then move it there in one step."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "epoch": epoch, "seconds": seconds, "blocks": members.blocks}
    content |= {"curves": {name: curve[: epoch + 1].clone() for name, curve in curves.items()}, "diverged": diverged}
    content |= {"memories": [group.memories() for group in groups]}
    new = path.with_name(f"{path.name}.new")
    try:
        with open(new, "w+b") as file:
            torch.save(content, file)
            file.seek(0)
            file.write(_digest(file.read()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _resume(path: Path, settings: str, members: _Members, groups, curves, diverged) -> tuple[int, float]:
    """Put everything back as the checkpoint has it, and return its epoch and its seconds."""
    try:
        raw = path.read_bytes()
        if _digest(raw[:-16]) != raw[-16:]:
            raise ValueError("The digest does not fit.")
        content = torch.load(io.BytesIO(raw[:-16]), map_location=members.blocks[0].device, weights_only=True)
        epoch, seconds, known = content["epoch"], content["seconds"], content["settings"]
    except Exception as error:
        raise DamagedCheckpoint(f"The checkpoint {path} cannot be read; delete it to start again.") from error
    rows = len(curves["train_loss"])
    if known != settings or epoch >= rows:
        what = "another run" if known != settings else f"a run of {epoch} epochs, not of {rows - 1}"
        raise ValueError(f"The checkpoint {path} belongs to {what}; name another file, or delete it to start again.")
    for block, saved in zip(members.blocks, content["blocks"], strict=True):
        block.copy_(saved)
    for group, memories in zip(groups, content["memories"], strict=True):
        group.remember(memories)
    for name, curve in curves.items():
        curve[: epoch + 1] = content["curves"][name].cpu()
    diverged.copy_(content["diverged"])
    return epoch, seconds
