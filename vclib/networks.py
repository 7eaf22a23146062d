"""Networks at random initialisation, over a batch of seeds: the multilayer perceptron and convolutional networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch.nn import functional

from .initialization import WeightLaw

ACTIVATIONS = {"linear": lambda a: a, "relu": torch.relu, "tanh": torch.tanh}
BIASES = ("none", "zero", "uniform")
PADDINGS = {"zeros": "constant", "circular": "circular"}  # the names of torch.nn, and those of its pad


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
        return _losses(self, x, y)


def check_targets(net: "MLP | FCN", x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError unless the targets ``y`` have the shape of the outputs for n inputs, and n is positive."""
    if not len(x):
        raise ValueError("At least one sample is needed.")
    expected = (len(x), net.b.shape[1], *x.shape[2:])
    if y.shape != expected:
        raise ValueError(f"Targets for these inputs have shape {expected}, not {tuple(y.shape)}.")


def _losses(net: "MLP | FCN", x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    check_targets(net, x, y)
    return 0.5 * (y - net(x)).square().flatten(1).sum(dim=1) / len(x)


def _check(kind: str, activation: str, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"For an {kind}, {name} is a positive integer, not {size!r}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"The activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")


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
    sizes = {"depth": depth, "width": width, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    _check("MLP", activation, sizes)
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


# ---- fully convolutional networks


@dataclass(frozen=True)
class FCN:
    r"""Fully convolutional image-to-image networks, one for each seed:

    .. math:: F(x) = B * \phi(N(W^L * \cdots \phi(N(W^1 * \phi(N(A * x))))))

    with convolutions (cross-correlations, as everywhere in the field) that keep the resolution. ``a`` holds the read-in
    filters (seeds, channels, inputs, k, k), ``hidden`` the L tensors (seeds, channels, channels, k, k) that the book
    measures, ``b`` the read-out (seeds, outputs, channels, k, k). ``padding`` is ``"zeros"`` or ``"circular"``.

    N is the identity, or with ``batch_norm`` it gives every channel mean 0 and variance 1 over the images and the
    pixels (:math:`\epsilon = 10^{-5}` under the root). With ``skip`` s > 0, every s-th hidden layer adds the
    activations of s layers before to its preactivations, as a residual block does.

    With k = 1 and images of one pixel it is an MLP.

    Source: Section 5 and Appendix A.1 (Figures 6 and 18) of the paper.
    """

    a: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    b: torch.Tensor
    activation: str
    padding: str = "zeros"
    batch_norm: bool = False
    skip: int = 0

    @property
    def depth(self) -> int:
        """The number L of hidden layers."""
        return len(self.hidden)

    @property
    def width(self) -> int:
        """The effective width :math:`d = k^2 c` of the paper."""
        return self.a.shape[1] * self.a.shape[-1] ** 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, inputs, rows, columns) to images (seeds, n, outputs, rows, columns)."""
        phi, seeds = ACTIVATIONS[self.activation], len(self.a)
        h = phi(self._normalise(self._convolve(x, self.a)))
        entered = h
        for k, w in enumerate(self.hidden, start=1):
            z = self._normalise(self._convolve(h, w))
            if self.skip and k % self.skip == 0:
                h = entered = phi(z + entered)
            else:
                h = phi(z)
        return self._convolve(h, self.b).unflatten(1, (seeds, -1)).transpose(0, 1)

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\frac1{2n}\sum_i\|y_i - F(x_i)\|^2` for each seed, (seeds,); ``y`` is (n, outputs, r, r)."""
        return _losses(self, x, y)

    def _convolve(self, h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The filters of each seed on its own channels, or on those of the images, (n, seeds x channels, r, r)."""
        p = w.shape[-1] // 2
        padded = functional.pad(h, (p, p, p, p), mode=PADDINGS[self.padding]) if p else h
        return functional.conv2d(padded, w.flatten(0, 1), groups=h.shape[1] // w.shape[2])

    def _normalise(self, z: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(z, None, None, training=True) if self.batch_norm else z


def fcn(
    *,
    depth: int,
    channels: int,
    inputs: int,
    outputs: int,
    law: Callable[[int, int], WeightLaw],
    activation: str,
    seeds: int,
    generator: torch.Generator,
    kernel: int = 3,
    padding: str = "zeros",
    batch_norm: bool = False,
    skip: int = 0,
    device: torch.device | None = None,
) -> FCN:
    """Draw ``seeds`` independent fully convolutional networks in float64 from one weight law.

    ``law`` is called with each layer's fan-in and fan-out: its channels in and out, times the pixels of a filter. The
    ``kernel`` is odd, so that the resolution is kept. The other arguments are those of :class:`FCN` and :func:`mlp`.

    Raises ValueError if a size is not positive, the kernel is even, ``skip`` is negative, or the activation or the
    padding is unknown.

    >>> from vclib.initialization import he
    >>> net = fcn(depth=3, channels=4, inputs=3, outputs=3, law=he, activation="relu", seeds=6,
    ...           generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 3, 7, 7, dtype=torch.float64)).shape, net.width
    (torch.Size([6, 5, 3, 7, 7]), 36)
    """
    sizes = {"depth": depth, "channels": channels, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    _check("FCN", activation, sizes | {"kernel": kernel})
    if kernel % 2 == 0:
        raise ValueError(f"The kernel of an FCN is odd, so that the resolution is kept, not {kernel}.")
    if padding not in PADDINGS:
        raise ValueError(f"The padding {padding!r} is unknown; choose one of {', '.join(PADDINGS)}.")
    if not isinstance(skip, Integral) or skip < 0:
        raise ValueError(f"skip is a number of layers, or 0 for none, not {skip!r}.")

    def draw(fan_out: int, fan_in: int) -> torch.Tensor:
        filters = law(fan_in * kernel**2, fan_out * kernel**2).sample(
            seeds, fan_out, fan_in * kernel**2, generator=generator
        )
        return filters.view(seeds, fan_out, fan_in, kernel, kernel).to(device)

    hidden = tuple(draw(channels, channels) for _ in range(depth))
    a, b = draw(channels, inputs), draw(outputs, channels)
    return FCN(a, hidden, b, activation, padding, batch_norm, skip)
