"""The multilayer perceptron of equation 1, over a batch of seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch

from .initialization import WeightLaw

ACTIVATIONS = {"linear": lambda a: a, "relu": torch.relu, "tanh": torch.tanh}
BIASES = ("none", "zero", "uniform")


@dataclass(frozen=True)
class MLP:
    r"""Networks :math:`F(x) = B\,\phi(W^L \cdots \phi(W^1 \phi(A x)))`, one for each seed.

    ``a`` is the read-in (seeds, width, inputs), ``hidden`` the L matrices (seeds, width, width) that the book measures,
    ``b`` the read-out (seeds, outputs, width), and the activation ``"linear"``, ``"relu"`` or
    ``"tanh"``. (Equation 1 has the first two.) ``biases`` is empty, as in the equation, or has L + 2 tensors (seeds,
    units), added after each matrix from A to B.

    Source: equation 1 of the paper; the gate :math:`D^0` follows A, the gate :math:`D^L` follows :math:`W^L`.
    """

    a: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    b: torch.Tensor
    activation: str
    biases: tuple[torch.Tensor, ...] = ()

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
        biases = [bias[..., None] for bias in self.biases] or [0.0] * (self.depth + 2)
        h = phi(self.a @ x.T + biases[0])
        for w, bias in zip(self.hidden, biases[1:-1], strict=True):
            h = phi(w @ h + bias)
        return (self.b @ h + biases[-1]).mT

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
    biases: str = "none",
    device: torch.device | None = None,
) -> MLP:
    """Draw ``seeds`` independent networks in float64 from one weight law.

    ``law`` is ``initialization.he``, ``xavier``, ``lecun`` or ``orthogonal``, called with each matrix's fan-in and
    fan-out. The activation is ``"linear"``, ``"relu"`` or ``"tanh"``. ``biases`` are ``"none"``, ``"zero"`` at the
    start, or ``"uniform"`` on :math:`\\pm1/\\sqrt{n_{in}}`, as torch.nn.Linear draws them; they are drawn after all
    weights. Everything is drawn where the generator lives, so that a seed means the same everywhere, and then moved to
    the device.

    Raises ValueError if a size is not positive, or the activation or the kind of biases is unknown.

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
    if biases not in BIASES:
        raise ValueError(f"Biases {biases!r} are unknown; choose one of {', '.join(BIASES)}.")

    def draw(fan_out: int, fan_in: int) -> torch.Tensor:
        return law(fan_in, fan_out).sample(seeds, fan_out, fan_in, generator=generator).to(device)

    def bias(fan_out: int, fan_in: int) -> torch.Tensor:
        size = 1 / math.sqrt(fan_in) if biases == "uniform" else 0.0
        uniform = torch.rand(seeds, fan_out, generator=generator, dtype=torch.float64, device=generator.device)
        return (size * (2 * uniform - 1)).to(device)

    hidden = tuple(draw(width, width) for _ in range(depth))
    a, b = draw(width, inputs), draw(outputs, width)
    if biases == "none":
        return MLP(a, hidden, b, activation)
    shapes = [(width, inputs), *[(width, width)] * depth, (outputs, width)]
    return MLP(a, hidden, b, activation, tuple(bias(*shape) for shape in shapes))
