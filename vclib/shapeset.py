"""A generator in the manner of Shapeset-3x2: images of one or two triangles, parallelograms and ellipses."""

from collections.abc import Iterator
from itertools import combinations_with_replacement
from numbers import Integral

import numpy as np
import torch

from .data import Dataset

SHAPES = ("triangle", "parallelogram", "ellipse")
PAIRS = list(combinations_with_replacement(range(3), 2))
CLASSES = (*SHAPES, *(f"two {SHAPES[a]}s" if a == b else f"{SHAPES[a]} and {SHAPES[b]}" for a, b in PAIRS))
KINDS = np.array([(kind, -1) for kind in range(3)] + PAIRS)  # of the objects in each class; -1 stands for none

# The standard shapes: an equilateral triangle, a square and a disc, each around a circle of radius 1 about 0.
INSIDE = (
    lambda u, v: np.maximum(-v, (3**0.5 * np.abs(u) + v) / 2) <= 1,
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 1,
    lambda u, v: u * u + v * v <= 1,
)
AREAS = np.array([27**0.5, 4, np.pi])
CORNERS = (np.array([[-(3**0.5), 3**0.5, 0], [-1, -1, 2]]), np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]]))

SIDES = 0.22, 0.36  # of a square of the same area as the object; the unit is the side of the image
ELONGATION = 2.5  # the largest: the angles of a triangle stay above 26 degrees, of a parallelogram above 43
GREYS, CONTRAST = (0.3, 1.0), 0.15
SMALLEST = 24  # in smaller images, the least objects have too few pixels to show what they are
BLOCK = 2**17  # pixels that are tested at once, which bounds the memory


def shapeset(count: int, *, rng: np.random.Generator, size: int = 32) -> Dataset:
    r"""Draw images of one or two objects, each a triangle, a parallelogram or an ellipse; the label says which.

    A generator of the same kind as Shapeset-3x2, not the original: the laws and the bounds below are ours. The nine
    classes are equally likely; their names in the order of the labels are ``CLASSES``. In a pair, either object may be
    the one in front, with equal chance, and hides at most half of the pixels of the other: else both are redrawn.

    An object is an affine image of an equilateral triangle, a square or a disc. The map is
    :math:`R(\theta)\,\operatorname{diag}(\sqrt r, 1/\sqrt r)\,R(\phi)`, with uniform angles and :math:`r` uniform on
    [1, 2.5], times a factor that makes the square root of the area uniform on [0.22, 0.36] of the side of the image.
    The place is uniform among those that leave a black frame of one pixel. Edges are hard: a pixel belongs to an object
    if its centre does. Two grey levels are uniform on [0.3, 1], given that they differ by at least 0.15; a single
    object takes one of them.

    Returns images float32 (count, 1, size, size) on black, which is 0, and labels int64 (count,). They depend on
    ``count``, ``size`` and the state of ``rng`` alone. Raises ValueError if ``count`` is not a positive whole number,
    ``size`` is not one of at least 24, or ``rng`` is not a NumPy generator.

    Source: X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS
    2010, PMLR 9:249-256.

    >>> shapes = shapeset(5, rng=np.random.default_rng(0))
    >>> shapes.note, tuple(shapes.images.shape), CLASSES[shapes.labels[0]]
    ('Shapes: 5 images (generated).', (5, 1, 32, 32), 'parallelogram and ellipse')
    """
    if not isinstance(count, Integral) or count < 1:
        raise ValueError(f"count must be a positive whole number, not {count!r}.")
    if not isinstance(size, Integral) or size < SMALLEST:
        raise ValueError(f"size must be a whole number of at least {SMALLEST} pixels, not {size!r}.")
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a NumPy generator such as np.random.default_rng(seed), not {rng!r}.")
    labels = rng.integers(len(CLASSES), size=count)
    kinds = rng.permuted(KINDS[labels], axis=1)  # of the object behind and of the one in front
    greys = rng.uniform(GREYS[0], GREYS[1] - CONTRAST, kinds.shape)
    greys += CONTRAST * (greys > greys[:, ::-1])  # the lighter one moves up, which is the conditional law
    greys = greys.astype(np.float32)[:, :, None, None]
    images = np.empty((count, 1, size, size), np.float32)
    for rows, masks in _scenes(kinds, rng=rng, size=size):
        behind, front = np.moveaxis(masks * greys[rows], 1, 0)
        images[rows, 0] = np.where(masks[:, 1], front, behind)
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels), name="Shapes", source="generated")


def _scenes(kinds: np.ndarray, *, rng: np.random.Generator, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows of ``kinds`` and the masks (n, 2, size, size) of their objects; redraw where too much is hidden."""
    rows = np.arange(len(kinds))
    while rows.size:
        maps, centres = _draw(kinds[rows], rng=rng, size=size)
        again = []
        for part in np.array_split(np.arange(len(rows)), -(-rows.size * size**2 // BLOCK)):
            masks = _masks(kinds[rows[part]], maps[part], centres[part], size=size)
            fits = 2 * masks.all(axis=1).sum(axis=(1, 2)) <= masks[:, 0].sum(axis=(1, 2))
            yield rows[part[fits]], masks[fits]
            again.append(rows[part[~fits]])
        rows = np.concatenate(again)


def _draw(kinds: np.ndarray, *, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the affine maps (..., 2, 2) and the centres (..., 2), as x and y in pixels, of objects of these kinds."""
    side = rng.uniform(*SIDES, kinds.shape) * size / AREAS[kinds] ** 0.5
    root = rng.uniform(1, ELONGATION, kinds.shape) ** 0.5
    angles = rng.uniform(0, 2 * np.pi, (2, *kinds.shape))
    cos, sin = np.cos(angles), np.sin(angles)
    turn, tilt = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), (0, 1), (-2, -1))
    maps = turn * np.stack([side * root, side / root], axis=-1)[..., None, :] @ tilt
    reach = np.linalg.norm(maps, axis=-1)  # of an ellipse, in x and y
    low, high = -reach, reach
    for kind, corners in enumerate(CORNERS):
        at = maps[kinds == kind] @ corners
        low[kinds == kind], high[kinds == kind] = at.min(axis=-1), at.max(axis=-1)
    return maps, rng.uniform(1 - low, size - 1 - high)


def _masks(kinds: np.ndarray, maps: np.ndarray, centres: np.ndarray, *, size: int) -> np.ndarray:
    """Say which pixels (..., size, size) have their centres in the object: map them back to the standard shape."""
    masks = np.zeros((*kinds.shape, size, size), bool)
    for kind, inside in enumerate(INSIDE):
        chosen = kinds == kind
        offsets = np.arange(size) + 0.5 - centres[chosen][:, :, None]
        back = np.linalg.inv(maps[chosen])[..., None] * offsets[:, None]
        masks[chosen] = inside(*np.moveaxis(back[:, :, 0, None, :] + back[:, :, 1, :, None], 1, 0))
    return masks
