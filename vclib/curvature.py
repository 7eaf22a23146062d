r"""Gradients, Hessian blocks and spectra with respect to the hidden matrices, over a batch of seeds.

Everything here is exact differentiation written out. One forward and one backward pass give every layer its input
:math:`h^k`, its gates and the signal :math:`\delta^k` that comes back; products of these are the gradient, the blocks
of the Hessian, and the Hessian times a vector. All seeds are computed at once, in groups that keep to a budget of
memory.

The hidden weights :math:`(W^1, \dots, W^L)` are one vector of N = L d² numbers, layer by layer and row by row: index
``k*d*d + i*d + j`` is the entry (i, j) of :math:`W^{k+1}`.

Of convolutional networks, all hidden filters are measured, layer by layer in the order of memory, N numbers in all.
Their derivatives come from automatic differentiation, applied twice; images are (n, inputs, r, r), and targets are of
the shape of the outputs. There is no :func:`hessian_block`, and the whole Hessian is put together from columns.

Networks, data and results are float64, as :mod:`vclib.networks` draws them. Curvature at depth 100 is often
below 1e-38, where float32 ends; for float32 networks a warning says so when it happens.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from .networks import ACTIVATIONS, FCN, MLP, StrippedResNet, check_targets
from .runtime import progress

Network = MLP | FCN | StrippedResNet
MEMORY = 2**28  # bytes of working memory, unless a function is told otherwise
CACHE = 2**26  # bytes at once on a processor, where more is slower
EXACT = 4096  # hidden weights up to which `magnitudes` looks at the whole Hessian
COLUMNS = 64  # columns that it draws above
DENSE = 256  # hidden weights up to which `extreme_eigenvalues` takes all eigenvalues of the whole Hessian
WHOLE = 1024  # and up to which Lanczos multiplies with the whole Hessian


@dataclass(frozen=True)
class Magnitudes:
    """What :func:`magnitudes` measures, one number a seed: all of shape (seeds,), on the processor.

    ``gradient`` is the mean over layers of the Frobenius norm of a layer's gradient, ``diagonal`` the mean absolute
    entry of the diagonal blocks, ``off_diagonal`` that of the other blocks (NaN at depth 1); the errors are standard
    errors from sampling columns, 0 when the whole Hessian was computed.
    """

    gradient: torch.Tensor
    diagonal: torch.Tensor
    off_diagonal: torch.Tensor
    diagonal_error: torch.Tensor
    off_diagonal_error: torch.Tensor


@dataclass(frozen=True)
class SpectralDensity:
    r"""The density of eigenvalues :math:`\frac1m\sum_{i,j}\omega_{ij}\,\delta(\lambda - \theta_{ij})`, from m probes.

    ``nodes`` are the :math:`\theta` and ``weights`` the :math:`\omega`, both (seeds, probes, steps); the weights of a
    probe add up to one. Their mean over the probes has the moments of the spectrum in expectation.
    """

    nodes: torch.Tensor
    weights: torch.Tensor


def gradient_norms(net: Network, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\|\partial\mathcal L/\partial W^k\|_F` for every seed and layer.

    Data ``x`` are (n, inputs) and ``y`` (n, outputs), or images for convolutional networks; the result is (seeds, L).
    Raises ValueError if their shapes do not fit the networks.

    Source: equation 56 of the paper, with the gate that it lacks; for convolutions, automatic differentiation.

    >>> gradient_norms(*_example()).shape
    torch.Size([2, 3])
    """
    return _norms(_Graph(net, x, y, twice=False) if not isinstance(net, MLP) else _Pass(net, x, y))


def hessian_vector_products(
    net: Network, x: torch.Tensor, y: torch.Tensor, vectors: torch.Tensor, *, memory: int = MEMORY
) -> torch.Tensor:
    r"""Return :math:`Hv` for m vectors of every seed; both are (seeds, m, L d²).

    A product costs six matrix products a layer: the derivative of the forward and of the backward pass in the
    direction :math:`v`. ``memory`` is the budget in bytes for working arrays; vectors are taken in groups that fit it,
    at least one.

    Raises ValueError if the vectors have another shape.

    Source: Pearlmutter (1994).

    >>> net, x, y = _example()
    >>> v = torch.ones(2, 1, 12, dtype=torch.float64)
    >>> bool(torch.allclose(hessian_vector_products(net, x, y, v)[:, 0], hessian(net, x, y).sum(dim=2)))
    True
    """
    return _product(_state(net, x, y), vectors, memory)


def hessian_columns(
    net: Network, x: torch.Tensor, y: torch.Tensor, columns: Sequence[int], *, memory: int = MEMORY
) -> torch.Tensor:
    """Return exact columns of the Hessian, (columns, seeds, L d²), in the order in which they are named.

    ``memory`` is as in :func:`hessian_vector_products`. Raises IndexError if no column is named or one is outside
    0 ... L d² - 1.

    >>> hessian_columns(*_example(), [0, 11]).shape
    torch.Size([2, 2, 12])
    """
    found = list(_columns(_state(net, x, y), columns, memory))
    place = {column: i for i, column in enumerate(column for group, _ in found for column in group)}
    return torch.cat([part for _, part in found], dim=1)[:, [place[int(column)] for column in columns]].movedim(1, 0)


def hessian_block(net: MLP, x: torch.Tensor, y: torch.Tensor, k: int, l: int) -> torch.Tensor:
    r"""Return the block of second derivatives by the entries of :math:`W^k` and :math:`W^l`, (seeds, d², d²).

    Rows belong to layer k and columns to layer l, both counted from 1 to L. For k < l and one sample it is

    .. math:: {B^k}^\top B^l \otimes h^k {h^l}^\top
              + \big[(\delta^l)_i\, (M^{lk})_{jp}\, (h^k)_q\big]_{pq,ij},

    with :math:`B^k = B D^L W^L \cdots W^{k+1} D^k`, :math:`M^{lk} = D^{l-1} W^{l-1} \cdots W^{k+1} D^k` and
    :math:`\delta^l = {B^l}^\top (F - y)`; for k = l the second part is absent. With tanh, by Hessian-vector products.

    Raises IndexError if a layer is outside 1 ... L, and ValueError if the network is convolutional.

    Source: equations 75 and 76 of the paper, with the gate that they lack.

    >>> bool(torch.equal(hessian_block(*_example(), 1, 3), hessian(*_example())[:, :4, 8:]))
    True
    """
    if not isinstance(net, MLP):
        raise ValueError("Blocks are built for multilayer perceptrons; of a convolutional network, ask for columns.")
    if not (1 <= k <= net.depth and 1 <= l <= net.depth):
        raise IndexError(f"Layers are counted from 1 to {net.depth}; there is no block ({k}, {l}).")
    if k > l:
        return hessian_block(net, x, y, l, k).mT
    size = net.width**2
    if net.activation == "tanh":
        columns = hessian_columns(net, x, y, list(range((l - 1) * size, l * size)))
        return columns.movedim(0, 2)[:, (k - 1) * size : k * size]
    state, ks = _Pass(net, x, y), range(k - 1, k)
    *_, between = _between(state, ks, l - 1)
    return _matrix(_block(state, _read_outs(state), ks, l - 1, between))[:, 0]


def hessian(net: Network, x: torch.Tensor, y: torch.Tensor, *, memory: int = MEMORY) -> torch.Tensor:
    """Return the whole Hessian of every seed, (seeds, L d², L d²): for small networks.

    Raises ValueError if it is larger than ``memory`` bytes.

    >>> h = hessian(*_example())
    >>> bool(torch.allclose(h, h.mT))
    True
    """
    seeds, total = len(net.a), sum(_sizes(net))
    needed = seeds * total**2 * net.a.element_size()
    if needed > memory:
        raise ValueError(
            f"The whole Hessian of {seeds} networks with {total} weights takes {needed / 2**30:.1f} GiB, the budget is "
            f"{memory / 2**30:.1f} GiB; take fewer seeds, raise memory, or ask for columns, blocks or magnitudes."
        )
    return _whole(_state(net, x, y), memory)


def magnitudes(
    net: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    columns: int | None = None,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Magnitudes:
    r"""Measure gradient norms and mean absolute entries of diagonal and off-diagonal Hessian blocks.

    A random column of the Hessian holds :math:`d^2` entries of one diagonal block and :math:`(L-1)d^2` entries of
    off-diagonal blocks, so the mean over uniformly drawn columns is an unbiased estimate of the mean over all. Where
    layers differ in size, sums over the drawn columns are divided by the number of entries in them.

    ``columns`` says how many to draw, without replacement and the same for all seeds; the whole Hessian is used when
    there are no more than that, and then no ``generator`` is needed. Without ``columns``, the whole Hessian is used up
    to 4,096 hidden weights and 64 columns are drawn above. Seeds and columns are taken in groups that fit ``memory``
    bytes of working arrays, at least one.

    Raises ValueError if ``columns`` is below 1, or below 2 when columns are drawn (no standard error), or no
    generator is given.

    Source: Figures 1, 4, 13 and 15 of the paper plot these means.

    >>> magnitudes(*_example()).diagonal.shape
    torch.Size([2])
    """
    total = sum(_sizes(net))
    columns = (total if total <= EXACT else COLUMNS) if columns is None else columns
    if columns < 1 or (1 == columns < total):
        raise ValueError(f"At least 2 columns are needed for a standard error, not {columns}.")
    if columns < total and generator is None:
        raise ValueError("Drawing columns at random needs a generator; pass a torch.Generator.")
    if columns < total:
        drawn = torch.randperm(total, generator=generator, device=generator.device)[:columns].tolist()
    whole = columns >= total and isinstance(net, MLP) and net.activation != "tanh"
    if net.a.device.type == "cpu" and isinstance(net, MLP):
        memory = min(memory, CACHE)
    d, n = net.width if whole else 0, len(x)
    numbers = 8 * (d**4 + n * d**2) + 3 * net.depth * n * d * (d + net.b.shape[1])

    def measure(state: "_Pass | _Graph") -> tuple[torch.Tensor, ...]:
        means = (
            _whole_means(state, memory)
            if whole
            else _column_means(state, drawn if columns < total else range(total), memory)
        )
        return _norms(state).mean(dim=1).cpu(), *(mean.cpu() for mean in means)

    return Magnitudes(*_over_seeds(measure, net, x, y, memory, numbers))


def extreme_eigenvalues(
    net: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    largest: int = 3,
    smallest: int = 3,
    generator: torch.Generator,
    tolerance: float = 1e-6,
    most: int = 200,
    memory: int = MEMORY,
) -> torch.Tensor:
    r"""Return the ``largest`` and the ``smallest`` eigenvalues of every seed, (seeds, their number), in falling order.

    Block Lanczos on Hessian-vector products with full reorthogonalisation. A block has as many vectors as the larger
    of the two numbers, so an eigenvalue of that multiplicity appears as often as it should. It stops when every wanted
    Ritz value :math:`\theta` has an error of at most ``tolerance`` :math:`\cdot \max|\theta|`, estimated by
    :math:`\min(\rho, \rho^2/g)` with the residual :math:`\rho = \|Hv - \theta v\|` and the distance g to the next
    Ritz value. Up to 256 weights, or when more than a quarter of all eigenvalues is wanted, the whole Hessian is used.
    Seeds are taken in groups that fit ``memory`` bytes, at least one.

    Raises ValueError if no eigenvalue is wanted or more than there are, or ``tolerance`` is not positive, and
    RuntimeError if ``most`` steps, or as many as fit ``memory`` bytes, do not reach the tolerance.

    Source: Golub and Underwood (1977); Parlett, The Symmetric Eigenvalue Problem, section 11.7; Figure 12 of the paper.

    >>> extreme_eigenvalues(*_example(), largest=1, smallest=0, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1])
    """
    total, count, block = sum(_sizes(net)), largest + smallest, max(largest, smallest)
    if min(largest, smallest) < 0 or not 1 <= count <= total:
        raise ValueError(f"Ask for 1 to {total} eigenvalues at both ends, not for {largest} and {smallest}.")
    if not tolerance > 0:
        raise ValueError(f"The tolerance is a positive number, not {tolerance!r}.")
    wanted = [*range(-1, -1 - largest, -1), *range(smallest - 1, -1, -1)]  # places in ascending order

    def at_once(state: "_Pass | _Graph") -> tuple[torch.Tensor, ...]:
        return (torch.linalg.eigvalsh(_whole(state, memory))[:, wanted],)

    def done(values: torch.Tensor, residuals: torch.Tensor) -> bool:
        if values.shape[-1] <= count:
            return False
        gaps = torch.nn.functional.pad(values.diff(dim=-1), (1, 1), value=torch.inf)
        gaps = torch.minimum(gaps[..., :-1], gaps[..., 1:])
        errors = torch.minimum(residuals, residuals**2 / gaps.clamp(min=torch.finfo(gaps.dtype).tiny))
        bound = tolerance * values.abs().amax(dim=-1, keepdim=True)
        return bool((errors[..., wanted] <= bound).all())

    def by_lanczos(state: "_Pass | _Graph") -> tuple[torch.Tensor, ...]:
        start = _random(state.net, (1, block, total), generator)
        steps = min(most, total // block, memory // (start.element_size() * start.numel()))
        values, converged = None, False
        if steps:
            values, _, converged = _lanczos(_operator(state, memory), start, steps, done)
        if not converged:
            raise RuntimeError(
                f"{steps} steps of Lanczos did not find {largest} and {smallest} eigenvalues to {tolerance:g}; allow a "
                "larger tolerance, more steps (most) or more memory."
            )
        return (values[:, 0, wanted],)

    if total <= max(DENSE, 4 * count):
        return _over_seeds(at_once, net, x, y, memory, 4 * total**2)[0]
    return _over_seeds(by_lanczos, net, x, y, memory, min(most, 50) * total * block + min(total, WHOLE) ** 2)[0]


def spectral_density(
    net: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    probes: int = 8,
    steps: int = 64,
    generator: torch.Generator,
    memory: int = MEMORY,
) -> SpectralDensity:
    r"""Estimate the density of all eigenvalues by stochastic Lanczos quadrature, for every seed.

    For a random unit vector q, :math:`q^\top f(H) q` has the mean :math:`\frac1N\operatorname{tr} f(H)`, and
    ``steps`` steps of Lanczos from q give its Gauss quadrature, exact for polynomials f of degree below 2 steps. The
    eigenvalues :math:`\theta_j` of the tridiagonal matrix are the nodes, the squared first entries of its
    eigenvectors the weights. Probes and seeds are taken in groups that fit ``memory`` bytes, at least one.

    Raises ValueError if ``probes`` or ``steps`` is below 1, or ``steps`` is above the number of hidden weights.

    Source: Ubaru, Chen and Saad (2017).

    >>> density = spectral_density(*_example(), probes=4, steps=5, generator=torch.Generator().manual_seed(0))
    >>> density.nodes.shape
    torch.Size([2, 4, 5])
    """
    total = sum(_sizes(net))
    if probes < 1 or not 1 <= steps <= total:
        raise ValueError(f"Take at least 1 probe and 1 to {total} steps, not {probes} and {steps}.")

    def measure(state: "_Pass | _Graph") -> tuple[torch.Tensor, ...]:
        start = _random(state.net, (probes, 1, total), generator)
        together = max(1, memory // (start.element_size() * steps * total * len(start)))
        times = _operator(state, memory)
        parts = [_lanczos(times, part, steps) for part in start.split(together, dim=1)]
        return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1][..., 0, :].square() for p in parts], dim=1)

    return SpectralDensity(*_over_seeds(measure, net, x, y, memory, steps * total + min(total, WHOLE) ** 2))


# ---- one forward and one backward pass, and the Hessian times vectors


class _Pass:
    r"""What one forward and one backward pass leave behind; tensors are (seeds, units, samples).

    ``h[k]`` enters :math:`W^{k+1}`, ``gates[k]`` is :math:`\phi'` of what comes out (None: all one), ``delta[k]`` the
    derivative of n times the loss by it, and ``bend[k]`` what the second derivative of the activation adds (None: 0).
    """

    def __init__(self, net: MLP, x: torch.Tensor, y: torch.Tensor) -> None:
        check_targets(net, x, y)
        if net.biases:
            raise ValueError("Curvature is measured on networks without biases.")
        net = MLP(net.a.detach(), tuple(w.detach() for w in net.hidden), net.b.detach(), net.activation)
        self.net, self.samples = net, len(x)
        z, targets = net.a @ x.T.to(net.a), y.T.to(net.a)
        if net.activation == "linear" and len(x) > net.width:
            # Only Z Z^T and Y Z^T enter the derivatives: with Z^T = Q R, the d samples R^T and Y Q have the same.
            q, r = torch.linalg.qr(z.mT)
            z, targets = r.mT, targets @ q
        phi = ACTIVATIONS[net.activation]
        self.h, self.gates = [phi(z)], []
        for w in net.hidden:
            a = w @ self.h[-1]
            self.h.append(phi(a))
            self.gates.append(_slope(net.activation, a, self.h[-1]))
        self.delta, self.bend = [], []
        signal = net.b.mT @ (net.b @ self.h[-1] - targets)
        for w, h, gate in zip(net.hidden[::-1], self.h[:0:-1], self.gates[::-1], strict=True):
            self.bend.append(-2 * h * gate * signal if net.activation == "tanh" else None)
            self.delta.append(_gated(gate, signal))
            signal = w.mT @ self.delta[-1]
        self.delta.reverse()
        self.bend.reverse()
        if net.a.dtype == torch.float32:
            _warn_of_underflow(_diagonal_sizes(net, x, y))


class _Graph:
    """The gradient of convolutional networks, (seeds, numbers) a layer, as a graph that can be differentiated again."""

    def __init__(self, net: FCN | StrippedResNet, x: torch.Tensor, y: torch.Tensor, *, twice: bool = True) -> None:
        self.net, self.leaves = net, tuple(w.detach().requires_grad_() for w in net.hidden)
        with torch.inference_mode(False), torch.enable_grad():
            loss = replace(net, hidden=self.leaves).losses(x.to(net.a), y.to(net.a)).sum()
            self.gradients = [g.flatten(1) for g in torch.autograd.grad(loss, self.leaves, create_graph=twice)]
        if twice and net.a.dtype == torch.float32:
            # With errors of the size of the targets, an entry of a diagonal block is about a squared gradient.
            sizes = torch.stack([g.detach().double().square().mean(dim=1) for g in self.gradients])
            _warn_of_underflow(sizes[sizes > 0])

    def times(self, v: torch.Tensor) -> torch.Tensor:
        """The Hessian of every seed times one vector; both are (seeds, N)."""
        parts = v.split(_sizes(self.net), dim=1)
        parts = torch.autograd.grad(self.gradients, self.leaves, parts, retain_graph=True)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def _state(net: Network, x: torch.Tensor, y: torch.Tensor) -> _Pass | _Graph:
    return _Pass(net, x, y) if isinstance(net, MLP) else _Graph(net, x, y)


def _sizes(net: Network) -> list[int]:
    """How many numbers each hidden layer of a seed has."""
    return [w[0].numel() for w in net.hidden]


def _slope(activation: str, a: torch.Tensor, h: torch.Tensor) -> torch.Tensor | None:
    if activation == "linear":
        return None
    return (a > 0).to(a) if activation == "relu" else 1 - h * h


def _gated(gate: torch.Tensor | None, signal: torch.Tensor) -> torch.Tensor:
    """Multiply (seeds, d, n) or (seeds, d, m, n) by the gates, in place."""
    if gate is None:
        return signal
    return signal.mul_(gate if signal.ndim == 3 else gate[:, :, None])


def _norms(state: _Pass | _Graph) -> torch.Tensor:
    """Frobenius norms of the gradients, (seeds, L); scaled, since squares underflow at half the digits."""
    if isinstance(state, _Graph):
        return torch.stack([_scaled_norm(g.detach()) for g in state.gradients], dim=1)
    pairs = zip(state.delta, state.h[:-1], strict=True)
    gradients = torch.stack([delta @ h.mT for delta, h in pairs], dim=1) / state.samples
    return _scaled_norm(gradients.flatten(2))


def _scaled_norm(v: torch.Tensor) -> torch.Tensor:
    """The norm of the last dimension."""
    scale = v.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    return (v / scale).norm(dim=-1) * scale[..., 0]


def _directional(state: _Pass, layers: list[tuple[slice, torch.Tensor]]) -> torch.Tensor:
    r"""Return H V for m directions V, (seeds, m, L d²).

    For every layer, ``layers`` says which directions have a part there, and that part, (seeds, d, their number, d):
    either all, or those that begin there. With dots for derivatives in the direction V: going up,
    :math:`\dot a = W\dot h + Vh` and :math:`\dot h = \phi' \dot a`; coming down,
    :math:`\dot\delta = \phi'\,\dot g + \phi''\,\dot a\,g` with :math:`g = W^\top\delta` from above and
    :math:`\dot g = W^\top\dot\delta + V^\top\delta`. The product is
    :math:`\dot\delta\, h^\top + \delta\, \dot h^\top`, summed over samples.
    """
    net, (seeds, d, n) = state.net, state.h[0].shape
    m = max(part.stop for part, _ in layers)
    result = net.a.new_zeros(net.depth, seeds, d, m, d)
    dot, bent = net.a.new_empty(seeds, d, 0, n), []
    for k, (part, v) in enumerate(layers):
        known = dot.shape[2]
        if known:
            product = dot.view(seeds, -1, n) @ state.delta[k].mT
            result[k, :, :, :known] = product.view(seeds, d, known, d).transpose(1, 3)
        dot = _plus(net.hidden[k], dot, part, v.flatten(1, 2) @ state.h[k])
        bent.append(None if state.bend[k] is None else state.bend[k][:, :, None] * dot)
        dot = _gated(state.gates[k], dot)
    dot = (net.b.mT @ (net.b @ dot.view(seeds, d, -1))).view(dot.shape)
    for k, (part, v) in reversed(list(enumerate(layers))):
        dot = _gated(state.gates[k], dot)
        if bent[k] is not None:
            dot[:, :, : bent[k].shape[2]] += bent[k]
        result[k].view(seeds, -1, d).baddbmm_(dot.view(seeds, -1, n), state.h[k].mT)
        if k:
            dot = _plus(net.hidden[k].mT, dot, part, v.transpose(1, 3).flatten(1, 2) @ state.delta[k])
    return result.permute(1, 3, 0, 2, 4).flatten(2).div_(state.samples)


def _plus(w: torch.Tensor, dot: torch.Tensor, part: slice, more: torch.Tensor) -> torch.Tensor:
    """Return W times the signals ``dot`` (seeds, d, m, n), plus ``more`` for those in ``part``, which may be new."""
    seeds, d, m, n = dot.shape
    if (part.start, part.stop) == (0, m):
        return torch.baddbmm(more.view(seeds, d, -1), w, dot.view(seeds, d, -1)).view(dot.shape)
    more = more.view(seeds, d, -1, n)
    if not m:
        return more
    dot = (w @ dot.view(seeds, d, -1)).view(dot.shape)
    if part.start == m:
        return torch.cat([dot, more], dim=2)
    dot[:, :, part] += more
    return dot


def _together(state: _Pass, memory: int) -> int:
    """How many directions fit the budget: three signals, and the vector three times; with tanh, a signal a layer."""
    seeds, d, n = state.h[0].shape
    signals = 3 + (state.net.depth if state.net.activation == "tanh" else 0)
    numbers = seeds * (signals * d * n + 3 * state.net.depth * d * d)
    return max(1, memory // (numbers * state.net.a.element_size()))


def _product(state: _Pass | _Graph, vectors: torch.Tensor, memory: int) -> torch.Tensor:
    net, total = state.net, sum(_sizes(state.net))
    if vectors.ndim != 3 or vectors.shape[::2] != (len(net.a), total):
        raise ValueError(
            f"Vectors for these networks have shape ({len(net.a)}, m, {total}), not {tuple(vectors.shape)}."
        )
    if isinstance(state, _Graph):
        result = torch.empty_like(vectors, dtype=net.a.dtype, device=net.a.device)
        for i, v in enumerate(vectors.to(net.a).unbind(dim=1)):
            result[:, i] = state.times(v)
        return result
    parts = []
    for group in vectors.to(net.a).split(_together(state, memory), dim=1):
        v = group.unflatten(2, (net.depth, net.width, net.width)).permute(2, 0, 3, 1, 4)
        parts.append(_directional(state, [(slice(0, group.shape[1]), part) for part in v]))
    return torch.cat(parts, dim=1)


def _operator(state: _Pass | _Graph, memory: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The Hessian as a function of vectors (seeds, m, L d²)."""
    if sum(_sizes(state.net)) > WHOLE or isinstance(state, _Graph):
        return lambda vectors: _product(state, vectors, memory)
    h = _whole(state, memory)
    return lambda vectors: vectors @ h


def _columns(state: _Pass | _Graph, columns: Iterable[int], memory: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield groups of columns, in ascending order: their numbers, and (seeds, columns, L d²)."""
    net, total, names = state.net, sum(_sizes(state.net)), sorted({int(column) for column in columns})
    wrong = [column for column in names if not 0 <= column < total]
    if wrong or not names:
        found = f"not {wrong[0]}" if wrong else "not none"
        raise IndexError(f"Name at least one column, from 0 to {total - 1}, {found}.")
    if isinstance(state, _Graph):
        for column in progress(names, "Hessian columns"):
            unit = net.a.new_zeros(len(net.a), total)
            unit[:, column] = 1
            yield [column], state.times(unit)[:, None]
        return
    d, together = net.width, _together(state, memory)
    groups = [names[i : i + together] for i in range(0, len(names), together)]
    for group in progress(groups, "Hessian columns"):
        column = torch.tensor(group)
        bounds = torch.searchsorted(column, torch.arange(net.depth + 1) * d * d).tolist()
        units = torch.nn.functional.one_hot(column % (d * d), d * d).to(net.a).view(-1, d, d).transpose(0, 1)
        parts = [slice(*ends) for ends in pairwise(bounds)]
        v = [units[:, part].expand(len(net.a), -1, -1, -1) for part in parts]
        yield group, _directional(state, list(zip(parts, v, strict=True)))


def _column_means(state: _Pass | _Graph, columns: Sequence[int], memory: int) -> tuple[torch.Tensor, ...]:
    """The mean |entry| in the drawn columns' own layers and in the others, and the standard errors of the two."""
    sizes = torch.tensor(_sizes(state.net))
    ends, total = sizes.cumsum(0), int(sizes.sum())
    sums, counts = [], []
    for group, values in _columns(state, columns, memory):
        layer = torch.searchsorted(ends, torch.tensor(group), right=True)
        by_layer = torch.stack([part.sum(dim=2) for part in values.abs_().split(sizes.tolist(), dim=2)], dim=2)
        place = layer.to(values.device).expand(len(values), -1)[..., None]
        own = by_layer.gather(2, place)[..., 0]  # summed apart: they may be far below the others, or above
        sums.append(torch.stack([own, by_layer.scatter(2, place, 0.0).sum(dim=2)]))
        counts.append(torch.stack([sizes[layer], total - sizes[layer]]))
    sums, counts = torch.cat(sums, dim=2), torch.cat(counts, dim=1).to(sums[0])[:, None]
    of_a_column = counts.mean(dim=2)  # at depth 1 the others have none: 0/0 is NaN
    means = sums.mean(dim=2) / of_a_column
    share = 1 - len(columns) / total  # finite-population correction: no error when every column was computed
    if not share:
        return *means, *torch.zeros_like(means)
    errors = (sums - means[..., None] * counts).std(dim=2) / of_a_column * (share / len(columns)) ** 0.5
    return *means, *errors


# ---- blocks as Kronecker products: linear and ReLU networks


def _between(state: _Pass, ks: range, last: int) -> Iterator[torch.Tensor | None]:
    r"""Yield, for l = 0 ... last, the :math:`M^{lk}` of equation 76 for all k < l in ``ks``, (seeds, d, k, samples, d).

    A linear network has one for all samples.
    """
    net, d = state.net, state.net.width
    between = None
    for l in range(last + 1):
        yield between
        if between is not None:  # one layer further
            between = (net.hidden[l] @ between.flatten(2)).view(between.shape)
            if state.gates[l] is not None:
                between *= state.gates[l][:, :, None, :, None]
        if l in ks:
            unit = torch.eye(d).to(net.a)[None, :, None, None].expand(len(net.a), -1, -1, -1, -1)
            gate = state.gates[l]
            unit = unit if gate is None else unit * gate[:, :, None, :, None]
            between = unit if between is None else torch.cat([between, unit], dim=2)


def _read_outs(state: _Pass) -> list[torch.Tensor]:
    r"""The :math:`B^k` of equation 75, (seeds, samples, outputs, d); one for all samples of a linear network."""
    net, result = state.net, []
    b = net.b[:, None] if state.gates[-1] is None else net.b[:, None] * state.gates[-1].mT[:, :, None]
    for k in range(net.depth - 1, -1, -1):
        result.append(b)
        if k:
            b = (b.flatten(1, 2) @ net.hidden[k]).view(b.shape)
            b = b if state.gates[k - 1] is None else b * state.gates[k - 1].mT[:, :, None]
    return result[::-1]


def _block(state: _Pass, read: list, ks: range, l: int, between: torch.Tensor | None) -> torch.Tensor:
    """The blocks (k, l) for all k <= l in ``ks``, (seeds, k, d, d, d, d) by the indices p, i, q, j of hessian_block.

    ``between`` holds the M of those k that are below l.
    """
    seeds, d, _ = state.h[0].shape
    below, shape = torch.stack([state.h[k] for k in ks], dim=1), (seeds, len(ks), d, d, d, d)
    outputs = torch.einsum("akcop,acoi->akcpi", torch.stack([read[k] for k in ks], dim=1), read[l]).flatten(3)
    blocks = (outputs.mT @ _outer(state, below, state.h[l][:, None])).view(seeds, len(ks), -1, d)  # (piq, j)
    if between is not None and between.shape[2]:
        count = between.shape[2]
        errors = _outer(state, state.delta[l][:, None], below[:, :count])
        middle = between.permute(0, 2, 3, 1, 4).flatten(3)
        blocks[:, :count] += (middle.mT @ errors).view(seeds, count, d, -1).mT  # (jp, iq) as (piq, j)
    return (blocks / state.samples).view(shape)


def _matrix(blocks: torch.Tensor) -> torch.Tensor:
    """From (seeds, k, p, i, q, j) to (seeds, k, d², d²), rows (p, q) and columns (i, j)."""
    return blocks.transpose(3, 4).flatten(4).flatten(2, 3)


def _outer(state: _Pass, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Products of all units of a and b, (seeds, k, samples, d²); of a linear network, their sum over samples."""
    if state.gates[-1] is None:
        return (a @ b.mT).flatten(2)[:, :, None]
    return (a.mT[..., :, None] * b.mT[..., None, :]).flatten(3)


def _all_blocks(state: _Pass, memory: int) -> Iterator[tuple[range, int, torch.Tensor]]:
    """Yield all blocks on and above the diagonal: layers k, layer l, and what :func:`_block` returns."""
    seeds, d, n = state.h[0].shape
    together = max(1, memory // (4 * seeds * (d**4 + n * d * d) * state.net.a.element_size()))
    read, depth = _read_outs(state), state.net.depth
    for l, between in progress(enumerate(_between(state, range(depth), depth - 1)), "Hessian blocks", total=depth):
        for first in range(0, l + 1, together):
            ks = range(first, min(first + together, l + 1))
            part = None if between is None else between[:, :, ks.start : ks.stop]
            yield ks, l, _block(state, read, ks, l, part)


def _whole(state: _Pass | _Graph, memory: int) -> torch.Tensor:
    """The whole Hessian, (seeds, L d², L d²)."""
    total = sum(_sizes(state.net))
    result = state.net.a.new_empty(len(state.net.a), total, total)
    if isinstance(state, _Graph) or state.net.activation == "tanh":
        for names, part in _columns(state, range(total), memory):
            result[:, names[0] : names[-1] + 1] = part
        return result
    depth, size = state.net.depth, state.net.width**2
    tiles = result.unflatten(2, (depth, size)).unflatten(1, (depth, size))
    for ks, l, block in _all_blocks(state, memory):
        part = _matrix(block)
        tiles[:, ks.start : ks.stop, :, l] = part
        tiles[:, l, :, ks.start : ks.stop] = part.permute(0, 3, 1, 2)
    return result


def _whole_means(state: _Pass, memory: int) -> tuple[torch.Tensor, ...]:
    """Mean |entry| of all diagonal and of all other blocks, and the errors, which are 0."""
    depth, total = state.net.depth, torch.zeros(2, len(state.net.a)).to(state.net.a)
    for ks, l, block in _all_blocks(state, memory):
        sums = block.abs_().sum(dim=(2, 3, 4, 5))
        on = 1 if l in ks else 0
        total[0] += sums[:, len(ks) - on :].sum(dim=1)
        total[1] += 2 * sums[:, : len(ks) - on].sum(dim=1)
    blocks = torch.tensor([[depth], [depth * (depth - 1)]]).to(total)  # at depth 1, the second mean is 0/0: NaN
    own, off = total / blocks / state.net.width**4
    return own, off, torch.zeros_like(own), torch.zeros_like(off)


# ---- Lanczos, groups of seeds, precision


def _lanczos(
    product: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    steps: int,
    done: Callable[[torch.Tensor, torch.Tensor], bool] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Block Lanczos from ``start`` (seeds, runs, b, N), all runs at once; ``product`` maps (seeds, m, N) to the same.

    Returns the eigenvalues (seeds, runs, j) of the projected matrix, ascending, its eigenvectors, and whether ``done``
    said so before the steps ran out; ``done`` sees the eigenvalues and the residuals.
    """
    b = start.shape[2]
    basis = start.new_empty(*start.shape[:2], steps * b, start.shape[3])
    projected = start.new_zeros(*start.shape[:2], 0, 0)
    q = torch.linalg.qr(start.mT)[0].mT
    for j in progress(range(0, steps * b, b), "Lanczos"):
        basis[:, :, j : j + b] = q
        known, last = basis[:, :, : j + b], max(0, j - b)
        w, overlap = _orthogonal(product(q.flatten(1, 2)).view(q.shape), basis[:, :, last : j + b])
        w = _orthogonal(w, known)[0]  # in exact arithmetic, the last two blocks would do
        projected = torch.nn.functional.pad(projected, (0, b, 0, b))
        projected[..., j:, last:] = overlap
        projected[..., last:, j:] = overlap.mT
        q, r = (part.mT for part in torch.linalg.qr(w.mT))  # w = r q
        if (r.diagonal(dim1=2, dim2=3).abs() <= 1e-10 * projected.abs().amax(dim=(2, 3))[..., None]).any():
            # The space is exhausted, and any new direction will do.
            q = torch.linalg.qr(_orthogonal(_orthogonal(q, known)[0], known)[0].mT)[0].mT
        if done is not None:
            values, vectors = torch.linalg.eigh(projected)
            if done(values, (r.mT @ vectors[..., j:, :]).norm(dim=2)):
                return values, vectors, True
    return *torch.linalg.eigh(projected), False


def _orthogonal(w: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Remove from the rows of w what lies in the basis; and how much that was, (..., b, j)."""
    overlap = w @ basis.mT
    return w - overlap @ basis, overlap


def _random(net: Network, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Gaussian numbers, drawn seed after seed, so that groups do not change them."""
    options = {"generator": generator, "dtype": net.a.dtype, "device": generator.device}
    return torch.stack([torch.randn(shape, **options) for _ in net.a]).to(net.a.device)


def _over_seeds(
    measure: Callable[[_Pass | _Graph], tuple[torch.Tensor, ...]],
    net: Network,
    x: torch.Tensor,
    y: torch.Tensor,
    memory: int,
    numbers: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Measure groups of seeds that fit half the budget, at ``numbers`` numbers a seed, and put them together."""
    check_targets(net, x, y)
    if isinstance(net, MLP):
        each = numbers + 3 * (net.depth + 2) * net.width * (len(x) + net.width)
    else:
        each = numbers + 4 * _saved(net, x)
    together = max(1, memory // (2 * net.a.element_size() * each))
    parts = []
    for first in range(0, len(net.a), together):
        parts.append(measure(_state(_chosen(net, slice(first, first + together)), x, y)))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _chosen(net: Network, seeds: slice) -> Network:
    """The networks of some seeds."""
    more = {"shortcuts": tuple(w[seeds] for w in net.shortcuts)} if isinstance(net, StrippedResNet) else {}
    return replace(net, a=net.a[seeds], hidden=tuple(w[seeds] for w in net.hidden), b=net.b[seeds], **more)


def _saved(net: FCN | StrippedResNet, x: torch.Tensor) -> int:
    """How many numbers a forward pass of one seed keeps for the way back."""
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    one = _chosen(net, slice(0, 1))
    leaves = tuple(w.detach().requires_grad_() for w in one.hidden)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        replace(one, hidden=leaves)(x.to(net.a))
    return sum(kept)


def _diagonal_sizes(net: MLP, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The size of the entries of each diagonal block, in float64, where it is not 0."""
    double = MLP(net.a.double(), tuple(w.double() for w in net.hidden), net.b.double(), net.activation)
    state = _Pass(double, x, y)
    sizes = []
    for read, h in zip(_read_outs(state), state.h[:-1], strict=True):
        sizes.append(read.square().mean(dim=(1, 2, 3)) * h.square().mean(dim=(1, 2)))
    sizes = torch.stack(sizes)
    return sizes[sizes > 0]


def _warn_of_underflow(sizes: torch.Tensor) -> None:
    if sizes.numel() and sizes.min() < torch.finfo(torch.float32).tiny:
        warnings.warn(
            f"Entries of the Hessian are about {sizes.min():.0e}, and float32 ends at 1e-38: they are lost. "
            "Use float64.",
            stacklevel=4,
        )


def _example() -> tuple[MLP, torch.Tensor, torch.Tensor]:
    """Two networks of width 2 and depth 3, and four data points, for the examples above."""
    w = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 2, 2, 2)
    x = torch.linspace(0, 1, 8, dtype=torch.float64).reshape(4, 2)
    return MLP(w[0], tuple(w), w[1], "linear"), x, x.flip(0)
