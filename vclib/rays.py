r"""Features that collapse: how far those of many inputs are from lying on one ray, and what a ray can tell.

A network without biases whose features are :math:`r_i u` with one vector u puts all inputs with :math:`r_i > 0` into
the same class: only their lengths :math:`r_i` differ.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import optimize


def outside_share(h: torch.Tensor) -> np.ndarray:
    r"""Return the share of features (seeds, d, n) outside their ray, for each seed.

    With the singular values :math:`s_1 \ge s_2 \ge \dots` of the matrix of features it is
    :math:`\omega = 1 - s_1^2 / \sum_j s_j^2`: 0 if all are multiples of one vector, at most :math:`1 - 1/d`. It is
    computed from the smaller part, :math:`\sum_{j>1} s_j^2 / \sum_j s_j^2` in float64, and NaN where all features
    are 0.

    >>> outside_share(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]]])).round(12).tolist()
    [0.5, 0.0]
    """
    energy = torch.linalg.svdvals(h.double()).square()
    return (energy[:, 1:].sum(dim=1) / energy.sum(dim=1)).cpu().numpy()


def ray_loss(lengths: ArrayLike, labels: ArrayLike, *, classes: int) -> float:
    r"""Return the lowest mean cross-entropy of outputs :math:`r_i f`, over all vectors f of ``classes`` numbers.

    This is what a network on a ray can reach if nothing but its read-out is trained: softmax regression on the
    ``lengths`` :math:`r_i \ge 0` (n,) alone, without an intercept. The problem is convex. ``labels`` (n,) are integers
    from 0.

    Raises ValueError if a length is negative or not finite, or a label is out of its range.

    >>> round(ray_loss([1.0, 1.0, 0.0], [0, 0, 1], classes=2), 3)  # sure of the first two; ln 2 for the third
    0.231
    """
    r, y = np.asarray(lengths, float), np.asarray(labels)
    if r.ndim != 1 or r.shape != y.shape or not len(r) or not np.all(np.isfinite(r)) or r.min() < 0:
        raise ValueError("Lengths are numbers (n,), at least 0, with a label for each.")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"Labels are integers from 0 to {classes - 1}.")
    r = r / max(r.mean(), np.finfo(float).tiny)
    rows = np.arange(len(y))

    def loss(f: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.outer(r, f)
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(np.maximum(p[rows, y], np.finfo(float).tiny)).mean()
        p[rows, y] -= 1
        return value, r @ p / len(r)

    return float(optimize.minimize(loss, np.zeros(classes), jac=True, method="BFGS").fun)
