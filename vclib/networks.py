"""The multilayer perceptron of equation 1, over a batch of seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch

from .initialization import WeightLaw

ACTIVATIONS = {"linear": lambda a: a, "relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class MLP:
    r"""Networks :math:`F(x) = B\,\phi(W^L \cdots \phi(W^1 \phi(A x)))` without biases, one for each seed.

    ``a`` is the read-in (seeds, width, inputs), ``hidden`` the L matrices (seeds, width, width) that the book measures,
    ``b`` the read-out (seeds, outputs, width), and the activation ``"linear"``, ``"relu"`` or
    ``"tanh"``. (Equation 1 has the first two.)

    Source: equation 1 of the paper; the gate :math:`D^0` follows A, the gate :math:`D^L` follows :math:`W^L`.
    """

    a: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    b: torch.Tensor
    activation: str

    @property
    def depth(self) -> int:
        """The number L of hidden matrices."""
        return len(self.hidden)

    @property
    def width(self) -> int:
        """The number d of units in a layer."""
        return self.a.shape[1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs (n, inputs) to outputs (seeds, n, outputs)."""
        phi = ACTIVATIONS[self.activation]
        h = phi(self.a @ x.T)
        for w in self.hidden:
            h = phi(w @ h)
        return (self.b @ h).mT

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\frac1{2n}\sum_i\|y_i - F(x_i)\|^2` for each seed, (seeds,); ``y`` is (n, outputs)."""
        check_targets(self, x, y)
        return 0.5 * (y - self(x)).square().sum(dim=(1, 2)) / len(x)


def check_targets(net: MLP, x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError unless the targets ``y`` are (n, outputs) for n inputs, and n is positive."""
    if not len(x):
        raise ValueError("At least one sample is needed.")
    if y.shape != (len(x), net.b.shape[1]):
        raise ValueError(f"Targets for these inputs have shape {(len(x), net.b.shape[1])}, not {tuple(y.shape)}.")


def mlp(
    *,
    depth: int,
    width: int,
    inputs: int,
    outputs: int,
    law: Callable[[int, int], WeightLaw],
    activation: str,
    seeds: int,
    generator: torch.Generator,
    device: torch.device | None = None,
) -> MLP:
    """Draw ``seeds`` independent networks in float64 from one weight law.

    ``law`` is ``initialization.he``, ``xavier``, ``lecun`` or ``orthogonal``, called with each matrix's fan-in and
    fan-out. The activation is ``"linear"``, ``"relu"`` or ``"tanh"``. Weights are drawn where the generator lives, so
    that a seed means the same everywhere, and then moved to the device.

    Raises ValueError if a size is not positive or the activation is unknown.

    >>> from vclib.initialization import he
    >>> net = mlp(depth=3, width=4, inputs=5, outputs=2, law=he, activation="relu", seeds=6,
    ...           generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(7, 5, dtype=torch.float64)).shape
    torch.Size([6, 7, 2])
    """
    for name, size in {"depth": depth, "width": width, "inputs": inputs, "outputs": outputs, "seeds": seeds}.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"The {name} of an MLP is a positive integer, not {size!r}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"The activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")

    def draw(fan_out: int, fan_in: int) -> torch.Tensor:
        return law(fan_in, fan_out).sample(seeds, fan_out, fan_in, generator=generator).to(device)

    hidden = tuple(draw(width, width) for _ in range(depth))
    return MLP(draw(width, inputs), hidden, draw(outputs, width), activation)
