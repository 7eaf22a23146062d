"""Gradients and Hessian blocks with respect to the hidden matrices, over a batch of seeds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .networks import MLP
from .runtime import progress


@dataclass(frozen=True)
class Magnitudes:
    """What :func:`magnitudes` measures, one number a seed: all of shape (seeds,), float64, on the processor.

    ``gradient`` is the mean over layers of the Frobenius norm of a layer's gradient, ``diagonal`` the mean absolute
    entry of the diagonal blocks, ``off_diagonal`` that of the other blocks (NaN at depth 1); the errors are standard
    errors from sampling columns, 0 when every column was computed.
    """

    gradient: torch.Tensor
    diagonal: torch.Tensor
    off_diagonal: torch.Tensor
    diagonal_error: torch.Tensor
    off_diagonal_error: torch.Tensor


def gradient_norms(net: MLP, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\|\partial\mathcal L/\partial W^k\|_F` for every seed and layer.

    Data ``x`` are (n, inputs) and ``y`` (n, outputs); the result is (seeds, L), float64.

    Source: equation 56 of the paper, by automatic differentiation.

    >>> gradient_norms(*_example()).shape
    torch.Size([2, 3])
    """
    return _norms(_gradients(net, x, y)[1])


def hessian_columns(net: MLP, x: torch.Tensor, y: torch.Tensor, columns: list[int]) -> torch.Tensor:
    r"""Return exact columns of the Hessian in the hidden weights :math:`(W^1, \dots, W^L)`, flattened row by row.

    Index ``k*d*d + i*d + j`` is the entry (i, j) of :math:`W^{k+1}`; one outside 0 ... L d² - 1 raises IndexError.
    The result is (columns, seeds, L d²), float64.

    Source: Pearlmutter (1994): a column is the gradient of one entry of the gradient.

    >>> hessian_columns(*_example(), [0, 11]).shape
    torch.Size([2, 2, 12])
    """
    return torch.stack(list(_columns(net, *_gradients(net, x, y, create_graph=True), columns)))


def hessian(net: MLP, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the whole Hessian of every seed, (seeds, L d², L d²): for small networks.

    The order of the weights is that of :func:`hessian_columns`.

    >>> h = hessian(*_example())
    >>> bool(torch.allclose(h, h.mT))
    True
    """
    return hessian_columns(net, x, y, list(range(net.depth * net.width**2))).movedim(0, 2)


def magnitudes(
    net: MLP, x: torch.Tensor, y: torch.Tensor, *, columns: int, generator: torch.Generator | None = None
) -> Magnitudes:
    r"""Measure gradient norms and mean absolute entries of diagonal and off-diagonal Hessian blocks.

    A random column of the Hessian holds :math:`d^2` entries of one diagonal block and :math:`(L-1)d^2` entries of
    off-diagonal blocks, so the mean over uniformly drawn columns is an unbiased estimate of the mean over all.

    ``columns`` says how many to draw, without replacement; all are taken when there are no more than that, and then no
    ``generator`` is needed. Networks and data are as in :func:`gradient_norms`.

    Raises ValueError if ``columns`` is below 1, or below 2 when columns are drawn (no standard error), or no
    generator is given.

    Source: Figures 1, 4, 13 and 15 of the paper plot these means.

    >>> magnitudes(*_example(), columns=12).diagonal.shape
    torch.Size([2])
    """
    total, size = net.depth * net.width**2, net.width**2
    if columns < 1 or (1 == columns < total):
        raise ValueError(f"At least 2 columns are needed for a standard error, not {columns}.")
    if columns < total and generator is None:
        raise ValueError("Drawing columns at random needs a generator; pass a torch.Generator.")
    drawn = torch.randperm(total, generator=generator)[:columns].tolist() if columns < total else list(range(total))
    hidden, gradients = _gradients(net, x, y, create_graph=True)
    pairs = zip(drawn, _columns(net, hidden, gradients, drawn), strict=True)
    sums = [_column_means(net, column // size, h) for column, h in pairs]
    diagonal, off = (torch.stack(part) for part in zip(*sums, strict=True))
    share = 1 - len(drawn) / total  # finite-population correction: no error when every column was computed
    error = [
        part.std(dim=0) * (share / len(drawn)) ** 0.5 if len(drawn) > 1 else torch.zeros_like(part[0])
        for part in (diagonal, off)
    ]
    means = _norms(gradients).mean(dim=1), diagonal.mean(dim=0), off.mean(dim=0)
    return Magnitudes(*(part.detach().cpu() for part in (*means, *error)))


def _norms(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.stack([gradient.norm(dim=(1, 2)) for gradient in gradients], dim=1)


def _columns(net: MLP, hidden: tuple, gradients: tuple, columns: list[int]) -> Iterator[torch.Tensor]:
    """Yield columns (seeds, L d²) one by one, so that memory stays flat; see hessian_columns."""
    size = net.width**2
    if not columns or min(columns) < 0 or max(columns) >= net.depth * size:
        raise IndexError(f"Name at least one column, from 0 to {net.depth * size - 1}, not {columns}.")
    for column in progress(columns, "Hessian columns"):
        target = gradients[column // size].flatten(1)[:, column % size].sum()
        parts = torch.autograd.grad(target, hidden, retain_graph=True, materialize_grads=True)
        yield torch.cat([part.flatten(1) for part in parts], dim=1)


def _column_means(net: MLP, layer: int, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean |entry| of a column's part in its own layer, and in the others (NaN at depth 1); (seeds,) each."""
    by_layer = column.abs().unflatten(1, (net.depth, -1)).mean(dim=2)
    own = by_layer[:, layer]
    return own, (by_layer.sum(dim=1) - own) / (net.depth - 1) if net.depth > 1 else torch.full_like(own, torch.nan)


def _gradients(net: MLP, x: torch.Tensor, y: torch.Tensor, *, create_graph: bool = False):
    """The hidden matrices as leaves, and the gradients in them of the losses of all seeds."""
    hidden = tuple(w.detach().requires_grad_() for w in net.hidden)
    losses = MLP(net.a, hidden, net.b, net.activation).losses(x, y)
    return hidden, torch.autograd.grad(losses.sum(), hidden, create_graph=create_graph)


def _example() -> tuple[MLP, torch.Tensor, torch.Tensor]:
    """Two networks of width 2 and depth 3, and four data points, for the examples above."""
    w = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, 2, 2, 2)
    x = torch.linspace(0, 1, 8, dtype=torch.float64).reshape(4, 2)
    return MLP(w[0], tuple(w), w[1], "linear"), x, x.flip(0)
