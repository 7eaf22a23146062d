"""Rays: shares against known spectra, losses against searches in one dimension."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from vclib.rays import outside_share, ray_loss


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 1e-15])
def test_the_share_of_a_known_spectrum(size):
    """Singular values 1 and `size`: also where 1 - s1²/sum would be rounded away."""
    q, p = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in (6, 9))
    values = torch.zeros(6, 9, dtype=torch.float64)
    values[0, 0], values[1, 1] = 1.0, size
    expected = size**2 / (1 + size**2)
    assert outside_share((q @ values @ p)[None])[0] == pytest.approx(expected, rel=1e-6, abs=1e-29)


def test_a_share_ignores_the_scale_and_lies_between_its_ends():
    h = torch.randn(5, 4, 30, dtype=torch.float64)
    np.testing.assert_allclose(outside_share(1e-20 * h), outside_share(h), rtol=1e-12)
    assert (outside_share(h) > 0).all()
    assert (outside_share(h) <= 1 - 1 / 4).all()
    assert outside_share(torch.eye(4)[None])[0] == pytest.approx(1 - 1 / 4)


def test_features_that_are_all_zero_have_no_share():
    assert np.isnan(outside_share(torch.zeros(2, 3, 4))).all()


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 1)), min_size=2, max_size=12))
def test_two_classes_against_a_search_in_one_dimension(pairs):
    pairs = [*pairs, (1.0, 0), (1.0, 1)]  # both classes occur, so the best output is finite
    r, y = (np.array(column) for column in zip(*pairs, strict=True))

    def loss(z):
        return np.logaddexp(0, np.where(y == 0, -1, 1) * z * r).mean()

    best = optimize.minimize_scalar(loss, bounds=(-200 / r.mean(), 200 / r.mean()), method="bounded").fun
    assert ray_loss(r, y, classes=2) == pytest.approx(best, abs=1e-5)


def test_equal_lengths_leave_the_entropy_of_the_labels():
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    entropy = -(np.array([0.5, 0.3, 0.2]) * np.log([0.5, 0.3, 0.2])).sum()
    assert ray_loss(np.full(10, 7.0), labels, classes=3) == pytest.approx(entropy, rel=1e-6)
    assert ray_loss(np.zeros(10), labels, classes=3) == pytest.approx(np.log(3))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_no_ray_gets_below_the_bound_of_the_theorem(seed, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=40)
    lengths = rng.exponential(size=40) * np.exp(3 * rng.standard_normal(classes))[labels]  # lengths that tell a lot
    shares = np.sort(np.bincount(labels, minlength=classes))[::-1] / 40
    bound = shares @ np.log(np.arange(1, classes + 1))
    assert bound - 1e-12 <= ray_loss(lengths, labels, classes=classes) <= np.log(classes) + 1e-12


def test_the_bound_is_approached_by_lengths_that_differ_a_lot():
    """Outputs 0, -1, -M, -M² ... and lengths that fall like M^(-j): the j-th class shares with those before it."""
    m, classes = 1e4, 4
    labels = np.arange(classes)
    assert ray_loss(m ** (0.5 - labels.astype(float)), labels, classes=classes) < np.log([1, 2, 3, 4]).mean() + 0.35


def test_the_unit_of_length_does_not_matter():
    rng = np.random.default_rng(0)
    r, y = rng.exponential(size=50), rng.integers(3, size=50)
    assert ray_loss(1e-9 * r, y, classes=3) == pytest.approx(ray_loss(r, y, classes=3), rel=1e-9)


@pytest.mark.parametrize(
    ("lengths", "labels", "sentence"),
    [
        ([1.0, -1.0], [0, 1], "Lengths are numbers (n,), at least 0, with a label for each."),
        ([1.0, np.nan], [0, 1], "Lengths are numbers (n,), at least 0, with a label for each."),
        ([1.0], [0, 1], "Lengths are numbers (n,), at least 0, with a label for each."),
        ([], [], "Lengths are numbers (n,), at least 0, with a label for each."),
        ([[1.0]], [[0]], "Lengths are numbers (n,), at least 0, with a label for each."),
        ([1.0, 1.0], [0, 3], "Labels are integers from 0 to 2."),
        ([1.0, 1.0], [-1, 0], "Labels are integers from 0 to 2."),
        ([1.0, 1.0], [0.0, 1.0], "Labels are integers from 0 to 2."),
    ],
)
def test_bad_input_raises(lengths, labels, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ray_loss(lengths, labels, classes=3)
