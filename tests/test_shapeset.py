"""Drawn shapes, held against exact areas, moments and bounds, and read back from the pixels alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from vclib import shapeset as module
from vclib.data import Dataset
from vclib.shapeset import CLASSES, KINDS, shapeset

modest = settings(deadline=None, max_examples=30, derandomize=True)
KURTOSES = np.array([32 / 5, 28 / 5, 16 / 3])  # E r^4 of a triangle, parallelogram or ellipse with covariance 1


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(count, *, size, seed=0):
    """As many objects of each kind: kinds, maps, centres and masks."""
    kinds = np.repeat([0, 1, 2], count)
    maps, centres = module._draw(kinds, rng=rng(seed), size=size)
    return kinds, maps, centres, module._masks(kinds, maps, centres, size=size)


def centroid_and_kurtosis(mask):
    """Two moments; the second does not change under affine maps."""
    points = np.argwhere(mask)[:, ::-1] + 0.5
    offsets = points - points.mean(axis=0)
    squares = np.einsum("ni,ij,nj->n", offsets, np.linalg.inv(offsets.T @ offsets / len(points)), offsets)
    return points.mean(axis=0), (squares**2).mean()


def kind_of(mask):
    return np.abs(centroid_and_kurtosis(mask)[1] - KURTOSES).argmin()


def pieces(image):
    """The pixels of each grey level but black."""
    return [image == level for level in np.unique(image) if level > 0]


def test_the_data_set_is_of_the_usual_form():
    shapes = shapeset(50, rng=rng(), size=np.int64(40))
    assert isinstance(shapes, Dataset)
    assert (shapes.images.shape, shapes.images.dtype) == ((50, 1, 40, 40), torch.float32)
    assert (shapes.labels.shape, shapes.labels.dtype) == ((50,), torch.int64)
    assert shapeset(1234, rng=rng()).note == "Shapes: 1,234 images (generated)."
    assert shapes.standardized().shape == (50, 1600)


def test_classes_are_named_in_the_order_of_the_labels():
    assert CLASSES[:5] == ("triangle", "parallelogram", "ellipse", "two triangles", "triangle and parallelogram")
    assert CLASSES[5:] == ("triangle and ellipse", "two parallelograms", "parallelogram and ellipse", "two ellipses")


def test_the_generator_alone_decides(monkeypatch):
    first = shapeset(300, rng=rng(5))
    np.random.seed(1)  # noqa: NPY002
    monkeypatch.setattr(module, "BLOCK", 5000)  # other blocks, same images
    again, other = shapeset(300, rng=rng(5)), shapeset(300, rng=rng(6))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    monkeypatch.setattr(module, "BLOCK", 500)  # less than an image
    assert torch.equal(shapeset(300, rng=rng(5)).images, first.images)
    stream = rng(5)
    assert torch.equal(shapeset(300, rng=stream).images, first.images)
    assert not torch.equal(shapeset(300, rng=stream).images, first.images)


def test_classes_are_equally_likely():
    counts = np.bincount(shapeset(9000, rng=rng(1)).labels, minlength=9)
    assert stats.chisquare(counts).pvalue > 0.01


def test_labels_can_be_read_from_the_pixels():
    shapes = shapeset(400, rng=rng(2), size=128)
    read = set()
    for image, label in zip(shapes.images[:, 0].numpy(), shapes.labels.tolist(), strict=True):
        objects = pieces(image)
        assert len(objects) == np.sum(KINDS[label] >= 0)
        if len(objects) == 1 or not (ndimage.binary_dilation(objects[0]) & objects[1]).any():  # nothing is hidden
            assert sorted(map(kind_of, objects)) == sorted(KINDS[label][KINDS[label] >= 0])
            read.add(label)
    assert read == set(range(9))


def test_shapes_have_the_moments_of_their_kind():
    kinds, _, _, masks = draw(30, size=256)
    kurtosis = np.array([centroid_and_kurtosis(mask)[1] for mask in masks])
    np.testing.assert_allclose(kurtosis, KURTOSES[kinds], atol=0.05)


@pytest.mark.parametrize("size", [24, 32, 96])
def test_areas_and_places_are_those_of_the_maps(size):
    kinds, maps, centres, masks = draw(400, size=size)
    area = np.linalg.det(maps) * np.array([27**0.5, 4, np.pi])[kinds]
    error = masks.sum(axis=(1, 2)) - area
    half_axes = np.array([2, 2**0.5, 1])[kinds] * np.linalg.svd(maps, compute_uv=False).T  # of an ellipse around it
    assert np.all(np.abs(error) < 2 * half_axes.sum(axis=0) + 1)  # half the perimeter of a box around it, and 1
    shift = np.array([centroid_and_kurtosis(mask)[0] for mask in masks]) - centres
    assert np.abs(shift).max() < 1
    for kind in range(3):
        for sample in (error[kinds == kind], *shift[kinds == kind].T):
            assert abs(sample.mean()) < 4 * sample.std() / 20  # pixelation has no bias


def test_objects_follow_the_stated_laws():
    kinds, maps, centres, _ = draw(2000, size=32)
    side = np.sqrt(np.linalg.det(maps) * np.array([27**0.5, 4, np.pi])[kinds]) / 32
    left, axes, right = np.linalg.svd(maps)
    turn = np.arctan2(left[:, 1, 0], left[:, 0, 0]) / np.pi % 1  # half turns do not change a long axis
    tilt = np.arctan2(right[:, 0, 1], right[:, 0, 0]) / np.pi % 1
    both = np.arctan2(maps[:, 1, 0] - maps[:, 0, 1], maps[:, 0, 0] + maps[:, 1, 1]) / (2 * np.pi) % 1
    reach = np.linalg.norm(maps[kinds == 2], axis=-1)
    place = (centres[kinds == 2] - reach - 1) / (30 - 2 * reach)  # of ellipses, in the room that the frame leaves
    laws = {"side": (side - 0.22) / 0.14, "elongation": (axes[:, 0] / axes[:, 1] - 1) / 1.5, "turn": turn, "tilt": tilt}
    laws |= {"both angles": both, "x": place[:, 0], "y": place[:, 1]}
    for name, sample in laws.items():
        assert stats.kstest(sample, "uniform").pvalue > 0.002, name
        assert sample.min() > -1e-9, name
        assert sample.max() < 1 + 1e-9, name


@pytest.mark.parametrize(("kind", "least"), [(0, 26), (1, 43)])
def test_corners_are_never_too_sharp(kind, least):
    kinds, maps, _, _ = draw(2000, size=32)
    corners = maps[kinds == kind] @ module.CORNERS[kind]
    edges = np.roll(corners, -1, axis=2) - corners
    edges /= np.linalg.norm(edges, axis=1, keepdims=True)
    angles = np.degrees(np.arccos(-(edges * np.roll(edges, 1, axis=2)).sum(axis=1)))
    np.testing.assert_allclose(angles.sum(axis=1), 180 * (kind + 1))
    assert least < angles.min() < least + 1


def test_the_object_in_front_hides_at_most_half():
    kinds = KINDS[rng(3).integers(9, size=3000)]
    scenes = list(module._scenes(kinds, rng=rng(4), size=32))
    rows, masks = (np.concatenate(part) for part in zip(*scenes, strict=True))
    assert sorted(rows) == list(range(3000))
    assert max(len(part) for part, _ in scenes) * 32**2 <= module.BLOCK
    assert np.array_equal(masks.any(axis=(2, 3)), kinds[rows] >= 0)
    pair = (kinds[rows] >= 0).all(axis=1)
    behind, front = np.moveaxis(masks[pair], 1, 0)
    hidden = (behind & front).sum(axis=(1, 2)) / behind.sum(axis=(1, 2))
    assert 0.45 < hidden.max() <= 0.5
    assert ((behind & front).sum(axis=(1, 2)) / front.sum(axis=(1, 2))).max() > 0.6  # the other way it may be more
    maps, centres = module._draw(kinds, rng=rng(4), size=32)
    free = module._masks(kinds, maps, centres, size=32)
    assert 0.05 < np.mean(2 * free.all(axis=1).sum(axis=(1, 2)) > free[:, 0].sum(axis=(1, 2))) < 0.1  # are redrawn


def test_either_object_may_be_in_front_and_is_painted_last(monkeypatch):
    scenes, seen = module._scenes, []

    def spy(kinds, **options):
        for rows, masks in scenes(kinds, **options):
            seen.append((kinds[rows], rows, masks))
            yield rows, masks

    monkeypatch.setattr(module, "_scenes", spy)
    shapes = shapeset(3000, rng=rng(7))
    kinds, rows, masks = (np.concatenate(part) for part in zip(*seen, strict=True))
    images, labels = shapes.images[rows, 0].numpy(), shapes.labels[rows].numpy()
    assert np.array_equal(np.sort(kinds), np.sort(KINDS[labels]))
    for label in (4, 5, 7):
        front = kinds[labels == label, 1] == KINDS[label, 1]
        assert stats.binomtest(int(front.sum()), len(front)).pvalue > 0.01
    for image, (behind, front) in zip(images, masks, strict=True):
        assert np.array_equal(image > 0, behind | front)
        for piece in (front, behind & ~front):
            assert len(np.unique(image[piece])) == piece.any()


def test_grey_levels_are_uniform_given_their_contrast():
    shapes = shapeset(9000, rng=rng(8))
    levels = [[image[piece][0] for piece in pieces(image)] for image in shapes.images[:, 0].numpy()]
    drawn = np.array([pair for pair in levels if len(pair) == 2])
    free = np.sort(rng(9).uniform(0.3, 1, (20_000, 2)))
    free = free[free[:, 1] - free[:, 0] >= 0.15]
    for k in (0, 1):  # of the darker and the lighter object
        assert stats.ks_2samp(drawn[:, k], free[:, k]).pvalue > 0.01
    assert stats.ks_2samp([one[0] for one in levels if len(one) == 1], free.ravel()).pvalue > 0.01


@modest
@given(st.integers(0, 2**63), st.integers(24, 70), st.integers(1, 12))
def test_every_image_keeps_the_promises(seed, size, count):
    shapes = shapeset(count, rng=rng(seed), size=size)
    assert shapes.labels.min() >= 0
    assert shapes.labels.max() <= 8
    for image, label in zip(shapes.images[:, 0].numpy(), shapes.labels, strict=True):
        assert not image[[0, -1]].any()
        assert not image[:, [0, -1]].any()
        objects = pieces(image)
        levels = np.unique(image)[1:]
        assert levels.min() >= np.float32(0.3)
        assert levels.max() <= 1
        assert np.all(np.diff(levels) > 0.15 - 1e-6)
        assert len(objects) == np.sum(KINDS[label] >= 0)
        for piece in objects:  # the area of an object has a lower bound, and half of its pixels are seen
            assert piece.sum() >= 0.7 * 0.22**2 * size**2 / len(objects)


@pytest.mark.parametrize("bad", [0, -3, 2.5, "7", None])
def test_a_bad_count_raises(bad):
    with pytest.raises(ValueError, match=r"^count must be a positive whole number, not .*\.$"):
        shapeset(bad, rng=rng())


@pytest.mark.parametrize("bad", [23, 0, -32, 32.0, (32, 32)])
def test_a_bad_size_raises(bad):
    with pytest.raises(ValueError, match=r"^size must be a whole number of at least 24 pixels, not .*\.$"):
        shapeset(3, rng=rng(), size=bad)


@pytest.mark.parametrize("bad", [0, None, torch.Generator(), np.random, np.random.RandomState(0)])
def test_another_generator_raises(bad):
    with pytest.raises(ValueError, match=r"^rng must be a NumPy generator such as .*, not .*\.$"):
        shapeset(3, rng=bad)
