"""The fourth moments of random networks, held against full enumeration, Gaussian closed forms, sympy and hypothesis."""

from collections import Counter
from fractions import Fraction as Q
from itertools import product
from math import comb

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib import moments

modest = settings(deadline=None, max_examples=60, derandomize=True)
positive = st.fractions(Q(1, 50), 50, max_denominator=50)
widths = st.integers(1, 500)
kurtoses = st.fractions(1, 60, max_denominator=50)
shares = st.fractions(Q(1, 50), 1, max_denominator=50)

LAWS = {  # value: probability, symmetric about 0
    "two points": {-1: Q(1, 2), 1: Q(1, 2)},
    "three points": {-1: Q(1, 8), 0: Q(3, 4), 1: Q(1, 8)},
    "four points": {-2: Q(1, 8), Q(-1, 2): Q(3, 8), Q(1, 2): Q(3, 8), 2: Q(1, 8)},
}
GATES = {"linear": (Q(1), lambda a: a), "relu": (Q(1, 2), lambda a: max(a, Q(0)))}


# ---- full enumeration at width 2


def of_law(law):
    """Variance and kurtosis."""
    second, fourth = (sum(chance * value**n for value, chance in law.items()) for n in (2, 4))
    return {"sigma2": Q(second), "kappa": Q(fourth) / second**2}


def pairs(law):
    """The law of two independent entries: vector -> probability."""
    return {(a, b): law[a] * law[b] for a, b in product(law, repeat=2)}


def through_gate(vectors, gate):
    result = Counter()
    for vector, chance in vectors.items():
        result[tuple(gate(a) for a in vector)] += chance
    return result


def through_matrix(vectors, law):
    """The entries of Wx are independent given x, with the law of one row times x."""
    result = Counter()
    for (x, y), chance in vectors.items():
        row = Counter()
        for (v, w), share in pairs(law).items():
            row[v * x + w * y] += share
        for vector, share in pairs(row).items():
            result[vector] += chance * share
    return result


def enumerated(vectors):
    """E ||a||_2^4 and E ||a||_4^4."""
    assert sum(vectors.values()) == 1
    return (
        sum(chance * (a**2 + b**2) ** 2 for (a, b), chance in vectors.items()),
        sum(chance * (a**4 + b**4) for (a, b), chance in vectors.items()),
    )


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("entries", LAWS)
def test_each_layer_is_exact(entries, law, gate):
    (p, function), vectors, one = GATES[gate], pairs(LAWS[entries]), of_law(LAWS[law])
    z2, z4 = start = enumerated(vectors)
    factor = p**2 * 2 * one["sigma2"] ** 2
    for depth in (1, 2):
        gated = through_gate(vectors, function)
        assert moments.after_gate(*enumerated(vectors), p=p) == enumerated(gated)
        vectors = through_matrix(gated, LAWS[law])
        expected = enumerated(vectors)
        assert moments.after_matrix(*enumerated(gated), width=2, **one) == expected
        z2, z4 = factor * moments.recursion_matrix(width=2, kappa=one["kappa"], p=p) @ [z2, z4]
        assert (z2, z4) == expected
        assert moments.fourth_moments(depth, width=2, p=p, z2=start[0], z4=start[1], **one) == expected


def test_a_matrix_may_have_any_number_of_columns():
    law = LAWS["three points"]
    vectors = through_matrix({(Q(3), Q(0)): Q(1)}, law)  # as good as one column
    assert moments.after_matrix(81, 81, width=2, **of_law(law)) == enumerated(vectors)


# ---- Gaussian weights


@pytest.mark.parametrize("width", [1, 3, 10, 64])
@pytest.mark.parametrize("depth", [1, 2, 30])
def test_gaussian_weights_in_closed_form(width, depth):
    gaussian = {"width": width, "sigma2": 1.3 / width, "kappa": 3.0, "z2": width * (width + 2.0), "z4": 3.0 * width}
    per_layer = width * (width + 2) * (1.3 / width) ** 2
    linear, _ = moments.fourth_moments(depth, p=1.0, **gaussian)
    np.testing.assert_allclose(linear, gaussian["z2"] * per_layer**depth, rtol=1e-12)
    squared = sum(comb(width, k) * k * (k + 2) for k in range(width + 1)) / 2**width  # of a chi-square, K degrees
    relu, _ = moments.fourth_moments(depth, p=0.5, **gaussian)
    expected = width * (width + 2) * (1.3 / width) ** (2 * depth) * squared**depth
    np.testing.assert_allclose(relu, expected, rtol=1e-12)


# ---- symbols

D, P, KAPPA, SIGMA2, Z2, Z4 = sympy.symbols("d p kappa sigma2 z2 z4", positive=True)


def vanishes(*expressions):
    return all(sympy.expand(sympy.together(value)) == 0 for value in expressions)


def test_trace_determinant_and_characteristic_polynomial():
    q = sympy.Matrix(moments.recursion_matrix(width=D, kappa=KAPPA, p=P))
    assert vanishes(q.trace() - (D - 1 + KAPPA / P), q.det() - (KAPPA - 3) * (D - 1) / P)
    assert vanishes(q.charpoly().eval(D) - (D - (KAPPA + 3 * (D - 1)) / P))


def test_the_matrix_is_gate_and_matrix_together():
    q = sympy.Matrix(moments.recursion_matrix(width=D, kappa=KAPPA, p=P))
    layer = moments.after_matrix(*moments.after_gate(Z2, Z4, p=P), width=D, sigma2=SIGMA2, kappa=KAPPA)
    assert vanishes(*(P**2 * D * SIGMA2**2 * q * sympy.Matrix([Z2, Z4]) - sympy.Matrix(layer)))
    symbols = {"width": D, "sigma2": SIGMA2, "kappa": KAPPA, "p": P}
    assert moments.fourth_moments(1, z2=Z2, z4=Z4, **symbols) == layer


# ---- any widths and laws


@modest
@given(widths, shares, kurtoses)
def test_at_the_critical_variance_fourth_moments_explode(width, p, kappa):
    q = moments.recursion_matrix(width=width, kappa=kappa, p=p)
    radius = np.abs(np.linalg.eigvals(q.astype(float))).max()
    if (width, p, kappa) != (1, 1, 1):  # one layer multiplies by Q / d
        assert radius > width * (1 + 1e-9)


def test_only_signs_in_a_chain_do_not_explode():
    q = moments.recursion_matrix(width=1, kappa=1, p=1)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(q.astype(float))), [0, 1], rtol=0, atol=1e-14)


@modest
@given(st.integers(0, 6), widths, positive, kurtoses, shares)
def test_moments_are_those_of_vectors(depth, width, sigma2, kappa, p):
    gaussian = {"z2": width * (width + 2), "z4": 3 * width}
    z2, z4 = moments.fourth_moments(depth, width=width, sigma2=sigma2, kappa=kappa, p=p, **gaussian)
    assert z4 <= z2 <= width * z4
    assert z2 >= ((p * width * sigma2) ** depth * width) ** 2  # Jensen


@modest
@given(st.integers(0, 5), widths, positive, kurtoses, shares)
def test_floats_agree_with_fractions(depth, width, sigma2, kappa, p):
    numbers = {"width": width, "sigma2": sigma2, "kappa": kappa, "p": p, "z2": width * (width + 2), "z4": 3 * width}
    exact = moments.fourth_moments(depth, **numbers)
    rounded = moments.fourth_moments(depth, **{name: float(value) for name, value in numbers.items()})
    np.testing.assert_allclose(rounded, np.array(exact, float), rtol=1e-11)


# ---- types


def calls(n, *, depth=3):
    """All functions, with numbers made by n."""
    width, sigma2, kappa, p = n(3), n(2) / n(3), n(7) / n(2), n(1) / n(2)
    return (
        moments.after_gate(n(15), n(9), p=p),
        moments.after_matrix(n(15), n(9), width=width, sigma2=sigma2, kappa=kappa),
        moments.recursion_matrix(width=width, kappa=kappa, p=p).ravel(),
        moments.fourth_moments(depth, width=width, sigma2=sigma2, kappa=kappa, p=p, z2=n(15), z4=n(9)),
    )


@pytest.mark.parametrize(("make", "kind"), [(Q, Q), (float, np.float64), (np.float32, np.float64)])
def test_the_type_of_the_result(make, kind):
    assert {type(value) for result in calls(make) for value in result} == {kind}
    np.testing.assert_allclose(np.hstack(calls(make)).astype(float), np.hstack(calls(Q)).astype(float), rtol=1e-6)


def test_integers_give_fractions():
    assert {type(value) for value in moments.after_matrix(1, 1, width=2, sigma2=3, kappa=np.int64(4))} == {Q}
    assert {type(value) for value in moments.recursion_matrix(width=2, kappa=3, p=1).ravel()} == {Q}


def test_sympy_stays_exact():
    half, number = sympy.Rational(1, 2), sympy.Rational(2, 3)
    law = {"width": 3, "sigma2": number, "kappa": sympy.Rational(7, 2), "p": half}
    exact = moments.fourth_moments(3, **law, z2=sympy.Integer(15), z4=sympy.Integer(9))
    assert all(isinstance(value, sympy.Rational) for value in exact)
    assert exact == calls(Q)[-1]
    at = {D: 3, SIGMA2: number, KAPPA: law["kappa"], P: half}
    symbolic = moments.fourth_moments(3, width=D, sigma2=SIGMA2, kappa=KAPPA, p=P, z2=15, z4=9)
    assert tuple(value.subs(at) for value in symbolic) == exact


def test_arrays_broadcast():
    width, kappa, p = np.array([1, 2, 3]), np.array([[1.0], [5.0]]), 0.5
    q = moments.recursion_matrix(width=width, kappa=kappa, p=p)
    assert (q.shape, q.dtype) == ((2, 3, 2, 2), np.float64)
    law = {"sigma2": 0.7, "p": p, "z2": 3.0, "z4": 3.0}
    both = moments.fourth_moments(4, width=width, kappa=kappa, **law)
    for i, j in np.ndindex(2, 3):
        one = {"width": int(width[j]), "kappa": kappa[i, 0]}
        np.testing.assert_array_equal(q[i, j], moments.recursion_matrix(p=p, **one))
        np.testing.assert_array_equal([value[i, j] for value in both], moments.fourth_moments(4, **one, **law))
    assert [value.shape for value in moments.after_gate(np.ones((2, 1)), 1, p=np.full(3, 0.5))] == [(2, 3), (3,)]
    pair = moments.after_matrix(1.0, 1.0, width=width, sigma2=1, kappa=kappa)
    assert [value.shape for value in pair] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("kappa", [1.0, 1.8, 3.0, 9.0])
@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("sigma2", [1e200, 5.0])
def test_overflow_is_infinite(kappa, p, sigma2):
    law = {"width": np.array([2, 3]), "sigma2": sigma2, "kappa": kappa, "p": p, "z2": 6.0, "z4": 3.5}
    np.testing.assert_array_equal(moments.fourth_moments(2000, **law), np.inf)
    np.testing.assert_array_equal(moments.fourth_moments(2000, **(law | {"sigma2": 1e-200})), 0)


@pytest.mark.parametrize(("z2", "z4"), [(15, 9), (Q(15), Q(9)), (15.0, 9.0)])
def test_no_layer_changes_nothing(z2, z4):
    assert moments.fourth_moments(0, width=3, sigma2=2, kappa=5, p=Q(1, 2), z2=z2, z4=z4) == (z2, z4)


# ---- errors

SENTENCES = {
    "width": ("A width is a positive integer", (0, -1, 2.5, Q(3, 2), np.nan, np.array([1, 0]))),
    "kappa": ("A kurtosis is at least 1", (0, Q(99, 100), 0.5, np.nan, np.array([3, 0.9]))),
    "p": ("The share p of open gates is above 0 and at most 1", (0, -0.5, Q(3, 2), np.nan, np.array([1, 0]))),
    "sigma2": ("A variance is positive", (0, -1.0, Q(-1, 2), np.nan, np.array([1.0, 0.0]))),
}
GOOD = {"width": 2, "kappa": 3, "p": 1, "sigma2": 1}
FUNCTIONS = {
    "after_gate": (lambda p: moments.after_gate(1, 1, p=p), ("p",)),
    "after_matrix": (lambda **law: moments.after_matrix(1, 1, **law), ("width", "sigma2", "kappa")),
    "recursion_matrix": (moments.recursion_matrix, ("width", "kappa", "p")),
    "fourth_moments": (lambda **law: moments.fourth_moments(1, z2=1, z4=1, **law), tuple(GOOD)),
}


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, (_, names) in FUNCTIONS.items() for name in names])
def test_numbers_out_of_range_raise(function, name):
    call, names = FUNCTIONS[function]
    sentence, values = SENTENCES[name]
    for value in values:
        with pytest.raises(ValueError, match=sentence):
            call(**({key: GOOD[key] for key in names} | {name: value}))


@pytest.mark.parametrize("depth", [-1, 1.0, Q(1), None])
def test_a_depth_that_is_none_raises(depth):
    with pytest.raises(ValueError, match="A depth is an integer from 0 on"):
        moments.fourth_moments(depth, **GOOD, z2=1, z4=1)


@pytest.mark.parametrize(
    ("z2", "z4"), [(1, 2), (Q(201, 100), 1), (0, 0), (2.1, 1.0), (1.0, 1.1), (np.array([1, 3]), 1)]
)
def test_moments_of_no_vector_raise(z2, z4):
    with pytest.raises(ValueError, match=r"No vector of width 2\S* has z2 = .*: z4 <= z2 <= width \* z4 must hold"):
        moments.fourth_moments(1, **GOOD, z2=z2, z4=z4)


def test_moments_on_the_border_may_be_rounded():
    assert moments.fourth_moments(0, **GOOD, z2=0.3, z4=0.15) == (0.3, 0.15)
    assert moments.fourth_moments(0, **GOOD, z2=0.1 + 0.2, z4=0.15) == (0.1 + 0.2, 0.15)
