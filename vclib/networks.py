"""Networks at random initialisation, over a batch of seeds: the multilayer perceptron and convolutional networks."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch.nn import functional

from .initialization import WeightLaw

ACTIVATIONS = {"linear": lambda a: a, "relu": torch.relu, "tanh": torch.tanh}
ALL_ACTIVATIONS = ACTIVATIONS | {"selu": torch.selu, "sigmoid": torch.sigmoid}  # of convolutional networks
BIASES = ("none", "zero", "uniform")
PADDINGS = ("zeros", "circular")
STEMS = {"cifar": 3, "imagenet": 7}  # and the size of their filters


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
        outputs = self.b @ _last(self.signals(x))
        return (outputs + self.biases[-1][..., None] if self.biases else outputs).mT

    def signals(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the activations behind A and behind each of the L matrices, (seeds, width, n)."""
        phi = ACTIVATIONS[self.activation]
        biases = [bias[..., None] for bias in self.biases[:-1]] or [0.0] * (self.depth + 1)
        h = phi(self.a @ x.T + biases[0])
        yield h
        for w, bias in zip(self.hidden, biases[1:], strict=True):
            h = phi(w @ h + bias)
            yield h

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\frac1{2n}\sum_i\|y_i - F(x_i)\|^2` for each seed, (seeds,); ``y`` is (n, outputs)."""
        return _losses(self, x, y)


def _last(signals: Iterator[torch.Tensor]) -> torch.Tensor:
    """The last one, without keeping the others."""
    return deque(signals, maxlen=1).pop()


def check_targets(net: "MLP | FCN | StrippedResNet", x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError unless the targets ``y`` have the shape of the outputs for n inputs, and n is positive."""
    if not len(x):
        raise ValueError("At least one sample is needed.")
    if not isinstance(net, MLP):
        check_images(net, x)
    expected = (len(x), net.b.shape[1], *(x.shape[2:] if isinstance(net, FCN) else ()))
    if y.shape != expected:
        raise ValueError(f"Targets for these inputs have shape {expected}, not {tuple(y.shape)}.")


def check_images(net: "FCN | StrippedResNet", x: torch.Tensor) -> None:
    """Raise ValueError unless ``x`` are images (n, inputs, rows, columns) with the channels of the networks."""
    if x.ndim != 4 or x.shape[1] != net.a.shape[2]:
        raise ValueError(f"Images for these networks are (n, {net.a.shape[2]}, rows, columns), not {tuple(x.shape)}.")


def _losses(net: "MLP | FCN | StrippedResNet", x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    check_targets(net, x, y)
    return 0.5 * (y - net(x)).square().flatten(1).sum(dim=1) / len(x)


def _check(kind: str, sizes: dict[str, int], **choices: tuple[str, Iterable[str]]) -> None:
    """Sizes are positive integers, and each choice is one of those that exist."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"For {kind}, {name} is a positive integer, not {size!r}.")
    for name, (choice, known) in choices.items():
        if choice not in known:
            raise ValueError(f"The {name} {choice!r} is unknown; choose one of {', '.join(known)}.")


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
    >>> x = torch.zeros(7, 5, dtype=torch.float64)
    >>> net(x).shape, [tuple(h.shape) for h in net.signals(x)]
    (torch.Size([6, 7, 2]), [(6, 4, 7), (6, 4, 7), (6, 4, 7), (6, 4, 7)])
    """
    sizes = {"depth": depth, "width": width, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    _check("an MLP", sizes, activation=(activation, ACTIVATIONS))
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


# ---- convolutional networks


@dataclass(frozen=True)
class FCN:
    r"""Fully convolutional image-to-image networks, one for each seed:

    .. math:: F(x) = B * \phi(N(W^L * \cdots \phi(N(W^1 * \phi(N(A * x))))))

    with convolutions (cross-correlations, as everywhere in the field) that keep the resolution. ``a`` holds the read-in
    filters (seeds, channels, inputs, k, k), ``hidden`` the L tensors (seeds, channels, channels, k, k) that the book
    measures, ``b`` the read-out (seeds, outputs, channels, k, k). The activation is one of the MLP's, ``"selu"`` or
    ``"sigmoid"``, and ``padding`` is ``"zeros"`` or ``"circular"``.

    N is the identity, or with ``batch_norm`` it gives every channel mean 0 and variance 1 over the images and the
    pixels (:math:`\epsilon = 10^{-5}` under the root; no gain and no shift). With ``skip`` s > 0, every s-th hidden
    layer adds the activations of s layers before to its preactivations, as a residual block does.

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
        check_images(self, x)
        return self.outputs_of(x)

    def outputs_of(self, x: torch.Tensor) -> torch.Tensor:
        """The same, and every seed has its own images if ``x`` is (n, seeds x inputs, rows, columns)."""
        return _by_seed(self, _convolve(_last(self._forward(x)), self.b, self.padding))

    def signals(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the activations behind A and behind each hidden layer, (seeds, n, channels, rows, columns)."""
        check_images(self, x)
        return (_by_seed(self, h) for h in self._forward(x))

    def _forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same, (n, seeds x channels, rows, columns)."""
        phi = ALL_ACTIVATIONS[self.activation]
        h = entered = phi(_layer(self, x, self.a))
        yield h
        for k, w in enumerate(self.hidden, start=1):
            z = _layer(self, h, w)
            if self.skip and k % self.skip == 0:
                h = entered = phi(z + entered)
            else:
                h = phi(z)
            yield h

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\frac1{2n}\sum_i\|y_i - F(x_i)\|^2` for each seed, (seeds,); ``y`` is (n, outputs, r, r)."""
        return _losses(self, x, y)


@dataclass(frozen=True)
class StrippedResNet:
    r"""ResNets for images, one for each seed, by default without batch normalisation and residual connections.

    A stem, four stages of blocks, the mean over the pixels, and a read-out. The stem is ``"cifar"``, one convolution
    3 x 3 of stride 1, or ``"imagenet"``, one of 7 x 7 and stride 2 and a pool of 3 x 3 and stride 2. Stage number
    s = 0 ... 3 has ``blocks[s]`` blocks of three convolutions, to :math:`c 2^s`, :math:`c 2^s` and :math:`4 c 2^s`
    channels, where c is the ``base``; from the second stage on, the first block halves the resolution (stride 2 in its
    middle convolution).

    ``a`` is the stem (seeds, c, inputs, k, k), ``hidden`` the filters of the blocks in order, (seeds, out, in, k, k),
    and ``b`` the read-out (seeds, outputs, 32 c). Where ``shortcuts`` has four tensors, one projection 1 x 1 for the
    first block of each stage, blocks are residual: what enters, projected where its shape changes, is added to the
    preactivation of the third convolution. Activation, ``padding`` and ``batch_norm`` are as in :class:`FCN`.

    Source: Section 5 and Appendix A.1 (Figures 7, 8 and 19) of the paper; He et al. (2016).
    """

    a: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    b: torch.Tensor
    blocks: tuple[int, int, int, int]
    stem: str
    activation: str
    padding: str = "zeros"
    batch_norm: bool = False
    shortcuts: tuple[torch.Tensor, ...] = ()

    @property
    def depth(self) -> int:
        """The number of layers with weights on the way from image to output: 2 and three for each block."""
        return 2 + len(self.hidden)

    @property
    def base(self) -> int:
        """The number c of channels after the stem."""
        return self.a.shape[1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (n, inputs, rows, columns) to (seeds, n, outputs)."""
        check_images(self, x)
        return self.outputs_of(x)

    def outputs_of(self, x: torch.Tensor) -> torch.Tensor:
        """The same, and every seed has its own images if ``x`` is (n, seeds x inputs, rows, columns)."""
        return _by_seed(self, _last(self._forward(x))).mean(dim=(3, 4)) @ self.b.mT

    def signals(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield what leaves the stem and each convolution of the blocks, (seeds, n, channels, rows, columns)."""
        check_images(self, x)
        return (_by_seed(self, h) for h in self._forward(x))

    def _forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same, (n, seeds x channels, rows, columns)."""
        phi, filters = ALL_ACTIVATIONS[self.activation], iter(self.hidden)
        h = phi(_layer(self, x, self.a, stride=1 if self.stem == "cifar" else 2))
        if self.stem == "imagenet":
            h = functional.max_pool2d(h, kernel_size=3, stride=2, padding=1)
        yield h
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride, entered = 2 if stage and not block else 1, h
                h = phi(_layer(self, h, next(filters)))
                yield h
                h = phi(_layer(self, h, next(filters), stride))
                yield h
                z = _layer(self, h, next(filters))
                if self.shortcuts:
                    z = z + (entered if block else _layer(self, entered, self.shortcuts[stage], stride))
                h = phi(z)
                yield h

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\frac1{2n}\sum_i\|y_i - F(x_i)\|^2` for each seed, (seeds,); ``y`` is (n, outputs)."""
        return _losses(self, x, y)


def _by_seed(net: FCN | StrippedResNet, h: torch.Tensor) -> torch.Tensor:
    """From (n, seeds x channels, rows, columns) to (seeds, n, channels, rows, columns)."""
    return h.unflatten(1, (len(net.a), -1)).transpose(0, 1)


def _convolve(h: torch.Tensor, w: torch.Tensor, padding: str, stride: int = 1) -> torch.Tensor:
    """The filters of each seed on its own channels, or on those of the images, (n, seeds x channels, r, r)."""
    p, groups = w.shape[-1] // 2, h.shape[1] // w.shape[2]
    if h.shape[2:] == (1, 1) and groups == len(w) and (padding == "zeros" or not p):
        # At one pixel only the middle of a filter counts, and a product of matrices is several times as fast.
        h = h.unflatten(1, (groups, -1))[..., 0, 0].transpose(0, 1)
        return (h @ w[..., p, p].mT).transpose(0, 1).flatten(1)[..., None, None]
    if p and padding != "zeros":
        h, p = functional.pad(h, (p, p, p, p), mode=padding), 0
    return functional.conv2d(h, w.flatten(0, 1), stride=stride, padding=p, groups=groups)


def _layer(net: FCN | StrippedResNet, h: torch.Tensor, w: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution and, if the network has it, batch normalisation."""
    z = _convolve(h, w, net.padding, stride)
    return functional.batch_norm(z, None, None, training=True) if net.batch_norm else z


def _filters(
    law: Callable[[int, int], WeightLaw], fan_out: int, fan_in: int, kernel: int, seeds: int, generator: torch.Generator
) -> torch.Tensor:
    """Filters (seeds, fan_out, fan_in, k, k) from a law that is called with the channels times the pixels."""
    pixels = kernel**2
    drawn = law(fan_in * pixels, fan_out * pixels).sample(seeds, fan_out, fan_in * pixels, generator=generator)
    return drawn.view(seeds, fan_out, fan_in, kernel, kernel)


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
    dtype: torch.dtype = torch.float64,
) -> FCN:
    """Draw ``seeds`` independent fully convolutional networks from one weight law.

    ``law`` is called with each layer's fan-in and fan-out: its channels in and out, times the pixels of a filter. The
    ``kernel`` is odd, so that the resolution is kept. Weights are drawn in float64 and then take the ``dtype``: a
    processor convolves float32 several times as fast. The other arguments are those of :class:`FCN` and :func:`mlp`.

    Raises ValueError if a size is not positive, the kernel is even, ``skip`` is negative, or the activation or the
    padding is unknown.

    >>> from vclib.initialization import he
    >>> net = fcn(depth=3, channels=4, inputs=3, outputs=3, law=he, activation="relu", seeds=6,
    ...           generator=torch.Generator().manual_seed(0))
    >>> x = torch.zeros(5, 3, 7, 7, dtype=torch.float64)
    >>> net(x).shape, net.width, next(net.signals(x)).shape
    (torch.Size([6, 5, 3, 7, 7]), 36, torch.Size([6, 5, 4, 7, 7]))
    """
    sizes = {"depth": depth, "channels": channels, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    choices = {"activation": (activation, ALL_ACTIVATIONS), "padding": (padding, PADDINGS)}
    _check("an FCN", sizes | {"kernel": kernel}, **choices)
    if kernel % 2 == 0:
        raise ValueError(f"The kernel of an FCN is odd, so that the resolution is kept, not {kernel}.")
    if not isinstance(skip, Integral) or skip < 0:
        raise ValueError(f"skip is a number of layers, or 0 for none, not {skip!r}.")

    def draw(fan_out: int, fan_in: int) -> torch.Tensor:
        return _filters(law, fan_out, fan_in, kernel, seeds, generator).to(device, dtype)

    hidden = tuple(draw(channels, channels) for _ in range(depth))
    a, b = draw(channels, inputs), draw(outputs, channels)
    return FCN(a, hidden, b, activation, padding, batch_norm, skip)


def stripped_resnet(
    *,
    blocks: Sequence[int],
    base: int,
    inputs: int,
    outputs: int,
    law: Callable[[int, int], WeightLaw],
    activation: str,
    seeds: int,
    generator: torch.Generator,
    stem: str = "cifar",
    big: bool = False,
    padding: str = "zeros",
    batch_norm: bool = False,
    skip: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> StrippedResNet:
    """Draw ``seeds`` independent stripped ResNets, or with ``batch_norm`` and ``skip`` whole ones, from one weight law.

    ``blocks`` are the numbers of blocks in the four stages: (3, 4, 6, 3) has depth 50. ``base`` is 64 in the paper, and
    128 in its wide networks. The convolutions of a block are 1 x 1, 3 x 3 and 1 x 1; in ``big`` networks 3 x 3, 5 x 5
    and 3 x 3 (with circular padding, for images that still have two pixels in the last stage). Shortcuts are drawn
    last, so that networks with and without them have the same other weights. The other arguments are those of
    :func:`fcn`, the fields those of :class:`StrippedResNet`.

    Raises ValueError if a size is not positive, there are not four stages, or the stem, the activation or the padding
    is unknown.

    >>> from vclib.initialization import he
    >>> net = stripped_resnet(blocks=(3, 4, 6, 3), base=2, inputs=3, outputs=10, law=he, activation="relu", seeds=5,
    ...                       generator=torch.Generator().manual_seed(0))
    >>> net(torch.zeros(7, 3, 32, 32, dtype=torch.float64)).shape, net.depth
    (torch.Size([5, 7, 10]), 50)
    """
    if not isinstance(blocks, Sequence) or len(blocks) != 4:
        raise ValueError(f"A ResNet has four stages; give a list of four numbers of blocks, not {blocks!r}.")
    sizes = {f"blocks[{s}]": count for s, count in enumerate(blocks)}
    sizes |= {"base": base, "inputs": inputs, "outputs": outputs, "seeds": seeds}
    choices = {"activation": (activation, ALL_ACTIVATIONS), "padding": (padding, PADDINGS), "stem": (stem, STEMS)}
    _check("a ResNet", sizes, **choices)

    def draw(fan_out: int, fan_in: int, kernel: int) -> torch.Tensor:
        return _filters(law, fan_out, fan_in, kernel, seeds, generator).to(device, dtype)

    ends, middle, hidden, shortcuts, entering = 3 if big else 1, 5 if big else 3, [], [], base
    for stage, count in enumerate(blocks):
        channels = base * 2**stage
        shortcuts.append((4 * channels, entering, 1))
        for _ in range(count):
            hidden += [
                draw(channels, entering, ends),
                draw(channels, channels, middle),
                draw(4 * channels, channels, ends),
            ]
            entering = 4 * channels
    a, b = draw(base, inputs, STEMS[stem]), draw(outputs, entering, 1)[..., 0, 0]
    shortcuts = tuple(draw(*shape) for shape in shortcuts) if skip else ()
    return StrippedResNet(a, tuple(hidden), b, tuple(blocks), stem, activation, padding, batch_norm, shortcuts)
