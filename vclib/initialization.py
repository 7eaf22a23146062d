"""Weight laws: the variance, the kurtosis and a sampler of each initialisation in the book."""

from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

import torch

FAMILIES = ("uniform", "gaussian", "orthogonal")


@dataclass(frozen=True)
class WeightLaw:
    r"""A law, symmetric about 0, from which the entries of a weight matrix are drawn.

    ``family`` is ``"uniform"``, ``"gaussian"`` or ``"orthogonal"``; ``variance`` is :math:`\sigma^2` of one entry,
    exact when it is a ``Fraction``; ``size``, the larger side of the matrix, is for ``"orthogonal"`` alone, whose
    entries depend on each other. The other two satisfy Assumption 1 of the paper.

    >>> lecun(64).variance, lecun(64).kurtosis
    (Fraction(1, 192), Fraction(9, 5))
    """

    name: str
    family: str
    variance: Fraction | float
    size: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"The family {self.family!r} is unknown; choose one of {', '.join(FAMILIES)}.")
        if (self.family == "orthogonal") != (self.size is not None):
            raise ValueError("An orthogonal law, and no other, needs the size of its matrix; call orthogonal().")
        if not self.variance > 0:
            raise ValueError(f"A variance is positive, not {self.variance}.")

    @property
    def kurtosis(self) -> Fraction:
        r"""Kurtosis :math:`\kappa = \mathbb E[w^4]/\sigma^4`; 9/5, 3, or :math:`3n/(n+2)` if orthogonal of size n."""
        if self.family == "orthogonal":
            return Fraction(3 * self.size, self.size + 2)
        return {"uniform": Fraction(9, 5), "gaussian": Fraction(3)}[self.family]

    @property
    def tau(self) -> float:
        r"""Half-width :math:`\tau = \sqrt{3\sigma^2}` of the uniform law on :math:`[-\tau, \tau]` of this variance."""
        return float(3 * self.variance) ** 0.5

    def sample(self, *shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Draw weights of shape ``(..., fan_out, fan_in)``; leading axes are independent copies (seeds, layers).

        The dtype is ``float64`` unless told otherwise, because deep products underflow in ``float32``.
        """
        options = {"generator": generator, "dtype": dtype, "device": generator.device}
        if self.family == "uniform":
            return torch.rand(*shape, **options).mul_(2).sub_(1).mul_(self.tau)
        normal = torch.randn(*shape, **options)
        if self.family == "gaussian":
            return normal.mul_(float(self.variance) ** 0.5)
        return _orthonormal(normal) * (float(self.variance) * self.size) ** 0.5


def _orthonormal(normal: torch.Tensor) -> torch.Tensor:
    """Turn Gaussian matrices into uniformly distributed ones whose shorter side is orthonormal."""
    wide = normal.shape[-2] < normal.shape[-1]
    q, r = torch.linalg.qr(normal.mT if wide else normal)
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the law exactly Haar's
    return q.mT if wide else q


def lecun(fan_in: int, fan_out: int | None = None, *, family: str = "uniform") -> WeightLaw:
    r"""LeCun's law as the paper means it, :math:`\sigma^2 = 1/(3\,\text{fan-in})`.

    The uniform one is :math:`U[-1/\sqrt{\text{fan-in}}, 1/\sqrt{\text{fan-in}}]`, which PyTorch's ``nn.Linear``
    still uses. Keras and TensorFlow give the name to another law, of variance 1/fan_in.

    ``fan_in`` and ``fan_out`` are the numbers of inputs and outputs of the layer; the second does not matter here, but
    all laws are called alike. The family is ``"uniform"`` or ``"gaussian"``.
    Raises ValueError if a fan is not a positive integer or the family is unknown.

    Source: LeCun et al. (1998); Section 2 of the paper.

    >>> round(lecun(100).tau, 12)
    0.1
    """
    return WeightLaw("LeCun", family, Fraction(1, 3 * _fan(fan_in)))


def xavier(fan_in: int, fan_out: int | None = None, *, family: str = "uniform") -> WeightLaw:
    r"""Glorot and Bengio's law, :math:`\sigma^2 = 2/(\text{fan-in} + \text{fan-out})`; :math:`1/d` if square.

    Parameters and errors are those of :func:`lecun`; ``fan_out`` is ``fan_in`` unless given.

    Source: Glorot & Bengio (2010); Proposition 2 of the paper.

    >>> xavier(8).variance, xavier(8, 24).variance
    (Fraction(1, 8), Fraction(1, 16))
    """
    return WeightLaw("Xavier", family, Fraction(2, _fan(fan_in) + _fan(fan_in if fan_out is None else fan_out)))


def he(fan_in: int, fan_out: int | None = None, *, family: str = "uniform") -> WeightLaw:
    r"""He's law for ReLU layers, :math:`\sigma^2 = 2/\text{fan-in}`.

    Parameters and errors are those of :func:`lecun`.

    Source: He et al. (2015); Proposition 2 of the paper.

    >>> he(8, family="gaussian").kurtosis
    Fraction(3, 1)
    """
    return WeightLaw("He", family, Fraction(2, _fan(fan_in)))


def orthogonal(fan_in: int, fan_out: int | None = None) -> WeightLaw:
    r"""Orthonormal rows or columns, uniformly distributed; an entry has :math:`\sigma^2 = 1/\max(\text{fans})`.

    Parameters and errors are those of :func:`lecun`.

    Source: Saxe et al. (2013); Section 1 (ii) and Figure 14 of the paper.

    >>> w = orthogonal(4).sample(4, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(w @ w.T, torch.eye(4, dtype=w.dtype)))
    True
    """
    size = max(_fan(fan_in), _fan(fan_in if fan_out is None else fan_out))
    return WeightLaw("orthogonal", "orthogonal", Fraction(1, size), size)


def _fan(size: int) -> int:
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(f"A fan-in or fan-out is a positive integer, not {size!r}.")
    return int(size)
