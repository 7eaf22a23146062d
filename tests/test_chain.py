"""The chain's closed forms, held against exact rationals, mpmath, simulation and autodiff."""

from fractions import Fraction as Q
from itertools import combinations, pairwise

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp
from scipy import stats

from vclib import chain

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func
modest = settings(deadline=None, max_examples=40, derandomize=True)
many = settings(modest, max_examples=200)
halves = st.integers(-4, 4).map(lambda n: Q(n, 2))
weights = st.lists(halves, min_size=1, max_size=5)
data = st.lists(st.tuples(halves, halves), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def fifty_digits():
    with mp.workdps(50):
        yield


# ---- moments


@pytest.mark.parametrize(("order", "depth", "tau"), [(1, 3, 2), (2, 5, Q(7, 3)), (4, 1, Q(1, 2)), (0, 9, 5), (3, 0, 2)])
def test_moment_is_exact_in_fractions(order, depth, tau):
    by_hand = Q(1)
    for _ in range(depth):
        by_hand *= Q(tau) ** order * Q(1, order + 1)
    value = chain.forward_moment(order, depth=depth, tau=tau)
    assert isinstance(value, Q)
    assert value == by_hand


def test_moment_is_exact_in_sympy():
    order, depth, tau, v = sympy.symbols("m L tau v", positive=True)
    one_factor = sympy.integrate(v**order / tau, (v, 0, tau))
    value = chain.forward_moment(order, depth=depth, tau=tau)
    assert sympy.simplify(sympy.log(value / one_factor**depth).expand(force=True)) == 0
    for m in (1, 2, 5):
        exact = sympy.Rational(3, 2) ** m / (m + 1)
        assert sympy.simplify(value.subs({order: m, depth: 4, tau: sympy.Rational(3, 2)}) - exact**4) == 0


@pytest.mark.parametrize("order", [-0.9, -0.5, 0.5, 1, 2.25, 7])
@pytest.mark.parametrize("tau", [0.3, 2.7])
def test_moment_of_one_factor_is_an_integral(order, tau):
    # t = v^(order + 1) takes the singularity at 0 away
    exact = mp.quad(lambda t: mpmath.mpf(1) / (order + 1) / tau, [0, mp.mpf(tau) ** (order + 1)])
    assert chain.forward_moment(order, depth=1, tau=tau) == pytest.approx(float(exact), rel=1e-14)
    if order > 0:
        direct = mp.quad(lambda v: v**order / tau, [0, tau])
        assert chain.forward_moment(order, depth=1, tau=tau) == pytest.approx(float(direct), rel=1e-12)


@pytest.mark.parametrize("order", [-0.4, 1, 2, 3])
def test_moment_of_four_factors_agrees_with_simulation(order):
    v = np.prod(1.5 * np.random.default_rng(4).random((400_000, 4)), axis=1) ** order
    error = v.std() / np.sqrt(v.size)
    assert abs(v.mean() - chain.forward_moment(order, depth=4, tau=1.5)) < 4 * error
    assert error < 0.02 * v.mean()


@modest
@given(st.integers(1, 8), st.integers(1, 30))
def test_a_moment_is_stable_only_at_its_own_tau(order, depth):
    tau = (order + 1) ** (1 / order)
    assert chain.forward_moment(order, depth=depth, tau=tau) == pytest.approx(1, rel=1e-12)
    assert chain.forward_moment(order + 1, depth=depth, tau=tau) > 1 + 1e-4


def test_moment_takes_arrays():
    taus = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(chain.forward_moment(2, depth=3, tau=taus), (taus**2 / 3) ** 3, rtol=1e-15)


@pytest.mark.parametrize(
    ("order", "depth", "tau", "sentence"),
    [
        (-1, 1, 1, "order must be above -1"),
        (Q(-3, 2), 1, 1, "order must be above -1"),
        (float("nan"), 1, 1, "order must be above -1"),
        (1, -1, 1, "depth is at least 0"),
        (1, 1, 0, "tau must be positive"),
        (1, 1, Q(-1, 2), "tau must be positive"),
        (1, 1, -0.5, "tau must be positive"),
    ],
)
def test_moment_out_of_range_raises(order, depth, tau, sentence):
    with pytest.raises(ValueError, match=sentence):
        chain.forward_moment(order, depth=depth, tau=tau)


# ---- the Erlang law


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("xi", [Q(1, 1024), Q(1, 2), Q(1), Q(7, 2), Q(25), Q(60)])
def test_erlang_cdf_is_the_printed_sum(depth, xi):
    total, term = Q(0), Q(1)
    for k in range(depth):
        total += term
        term = term * xi / (k + 1)
    with mp.workdps(120):
        exact = 1 - mp.exp(-mp.mpf(xi.numerator) / xi.denominator) * mp.mpf(total.numerator) / total.denominator
    assert float(chain.erlang_cdf(float(xi), depth=depth)) == pytest.approx(float(exact), rel=1e-12)


def test_erlang_cdf_is_zero_below_zero_and_broadcasts():
    value = chain.erlang_cdf([-3.0, 0.0, 1.0], depth=[[1], [2]])
    np.testing.assert_array_equal(value[:, :2], 0)
    np.testing.assert_allclose(value[:, 2], [1 - np.exp(-1), 1 - 2 * np.exp(-1)], rtol=1e-14)


@pytest.mark.parametrize("depth", [0, -1, 1.5, np.nan, [1, 0]])
def test_a_depth_that_is_none_raises(depth):
    calls = (
        lambda: chain.erlang_cdf(1.0, depth=depth),
        lambda: chain.erlang_median(depth),
        lambda: chain.erlang_median_bounds(depth),
        lambda: chain.median_forward(depth=depth, tau=1.0),
        lambda: chain.log_typical_forward(depth=depth, tau=1.0),
        lambda: chain.sample_log_forward(depth=depth, tau=1.0, size=2, rng=np.random.default_rng(0)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="A depth is a whole number, at least 1"):
            call()


def exact_excess(depth):
    """Erlang median less the depth, by root-finding on mpmath's incomplete gamma function."""
    depth = mp.mpf(depth)
    start = (depth - mp.mpf(1) / 3, depth - mp.mpf("0.31"))
    with mp.workdps(60):
        return mp.findroot(lambda q: mp.gammainc(depth, 0, q, regularized=True) - mp.mpf(1) / 2, start) - depth


def exact_excess_by_quadrature(depth):
    """The same for depths where a sum of ``depth`` terms is out of reach: an integral over the density's bulk."""
    depth = mp.mpf(depth)
    root, constant = mp.sqrt(depth), mp.loggamma(depth)

    def density(s):
        t = depth + root * s
        return mp.exp((depth - 1) * mp.log(t) - t - constant) * root

    def cdf(excess):
        return mp.quad(density, [-16, -8, -4, excess / root])

    return mp.findroot(lambda m: cdf(m) - mp.mpf(1) / 2, (-mp.mpf(1) / 3, mp.mpf("-0.33")), tol=1e-60)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 50, 199, 200, 201, 500, 2000, 5000])
def test_erlang_median_against_mpmath(depth):
    excess = exact_excess(depth)
    assert abs(chain.erlang_median(depth) / (depth + excess) - 1) < 1e-12
    assert abs(chain._erlang_median_excess(depth) / excess - 1) < 1e-9


@pytest.mark.parametrize("depth", [10**6, 10**9])
def test_erlang_median_of_great_depths_against_quadrature(depth):
    assert abs(chain._erlang_median_excess(depth) / exact_excess_by_quadrature(depth) - 1) < 1e-14


def test_the_two_oracles_of_the_median_agree():
    assert abs(exact_excess(300) - exact_excess_by_quadrature(300)) < mp.mpf("1e-30")


@modest
@given(hnp.arrays(np.int64, 20, elements=st.integers(1, 10**12)))
def test_median_lies_within_chois_bounds(depths):
    low, high = chain.erlang_median_bounds(depths)
    median, excess = chain.erlang_median(depths), chain._erlang_median_excess(depths)
    assert np.all(low <= median)
    assert np.all(median <= high * (1 + 1e-15))  # equal at depth 1, up to rounding
    assert np.all(excess >= -1 / 3)
    assert np.all(excess <= np.log(2) - 1 + 1e-15)


def test_bounds_are_chois():
    low, high = chain.erlang_median_bounds([1, 10])
    np.testing.assert_allclose(low, [2 / 3, 29 / 3], rtol=1e-15)
    np.testing.assert_allclose(high, [float(mp.ln(2)), float(9 + mp.ln(2))], rtol=1e-15)


def test_median_grows_by_almost_one_with_each_layer():
    steps = np.diff(chain.erlang_median(np.arange(1, 3000)))
    assert np.all(steps < 1)
    assert np.all(steps > 0.98)
    excess = chain._erlang_median_excess(np.arange(1, 3000))
    assert np.all(np.diff(excess) < 0)


@modest
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_median_is_monotone_in_depth(a, b):
    assert (chain.erlang_median(a) < chain.erlang_median(b)) == (a < b)


# ---- medians and samples of the forward pass


def test_at_tau_e_the_log_median_tends_to_a_third():
    assert float(chain.median_forward(depth=10**9, tau=np.e, log=True)) == pytest.approx(1 / 3, abs=2e-7)
    # the float e is 1.4e-16 below e: at depth 1e9 that shifts the logarithm by -5e-8
    shift = 10**9 * (mp.log(mp.mpf(np.e)) - 1)
    expected = float(shift + mp.mpf(1) / 3 - mp.mpf(8) / (405 * 10**9))
    assert float(chain.median_forward(depth=10**9, tau=np.e, log=True)) == pytest.approx(expected, rel=1e-12)


TAUS = [
    np.e,
    np.nextafter(np.e, 0),
    np.nextafter(np.e, 3),
    *(np.e + s * h for h in (1e-14, 1e-10, 1e-5) for s in (1, -1)),
]
TAUS += [0.01, 0.5, 1.0, np.sqrt(3), 2.0, np.e / 2, 1.5 * np.e, 3.0, 5.0, 1e6]


@pytest.mark.parametrize("depth", [1, 7, 150, 199, 200, 3000, 10**6, 10**9])
def test_log_median_against_mpmath(depth):
    excess = exact_excess(depth) if depth <= 5000 else exact_excess_by_quadrature(depth)
    for tau in TAUS:
        drift = depth * (mp.log(mp.mpf(float(tau))) - 1)
        value = mp.mpf(float(chain.median_forward(depth=depth, tau=tau, log=True)))
        # relative to the larger of the two terms, which can cancel
        assert abs(value - (drift - excess)) <= 1e-12 * max(abs(drift), abs(excess)), tau
        typical = mp.mpf(float(chain.log_typical_forward(depth=depth, tau=tau)))
        assert abs(typical - drift) <= 1e-14 * abs(drift), tau


def test_median_is_the_exponential_of_its_logarithm():
    depths, taus = np.array([1, 5, 30])[:, None], np.array([0.5, 2.0, np.e, 3.5])
    log = chain.median_forward(depth=depths, tau=taus, log=True)
    assert log.shape == (3, 4)
    np.testing.assert_allclose(chain.median_forward(depth=depths, tau=taus), np.exp(log), rtol=1e-15)
    assert float(chain.median_forward(depth=1, tau=4.0)) == pytest.approx(2.0, rel=1e-15)
    assert chain.median_forward(depth=10_000, tau=0.5) == 0.0


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan, [1.0, 0.0]])
def test_tau_must_be_positive(tau):
    for call in (chain.median_forward, chain.log_typical_forward):
        with pytest.raises(ValueError, match="tau must be positive"):
            call(depth=3, tau=tau)


def explicit_log_products(depth, tau, size, rng):
    return np.log(tau * (1 - rng.random((size, depth)))).sum(axis=1)  # U in (0, 1]


SAMPLERS = {
    "erlang": lambda depth, tau, size, rng: chain.sample_log_forward(depth=depth, tau=tau, size=size, rng=rng),
    "products": explicit_log_products,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("depth", "tau"), [(1, 2.0), (4, 1.0), (20, np.e)])
def test_half_of_all_samples_lie_below_the_median(sampler, depth, tau):
    size = 40_000
    sample = SAMPLERS[sampler](depth, tau, size, np.random.default_rng(depth))
    below = np.mean(sample < chain.median_forward(depth=depth, tau=tau, log=True))
    assert abs(below - 0.5) < 4 * 0.5 / np.sqrt(size)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_mean_logarithm_is_the_typical_one(sampler):
    depth, tau, size = 12, 2.2, 40_000
    sample = SAMPLERS[sampler](depth, tau, size, np.random.default_rng(3))
    error = np.sqrt(depth / size)  # ln v has variance L
    assert abs(sample.mean() - chain.log_typical_forward(depth=depth, tau=tau)) < 4 * error
    assert sample.var() == pytest.approx(depth, rel=0.05)


@pytest.mark.parametrize("depth", [1, 3, 25])
def test_samples_follow_the_erlang_law(depth):
    tau, rng = 1.7, np.random.default_rng(11)
    erlang = SAMPLERS["erlang"](depth, tau, 20_000, rng)
    products = SAMPLERS["products"](depth, tau, 20_000, rng)
    assert stats.ks_2samp(erlang, products).pvalue > 0.01
    for sample in (erlang, products):
        xi = depth * np.log(tau) - sample
        assert stats.kstest(xi, lambda t: chain.erlang_cdf(t, depth=depth)).pvalue > 0.01
        assert stats.kstest(xi, lambda t: chain.erlang_cdf(t, depth=depth + 1)).pvalue < 1e-6


# ---- loss, gradient and Hessian


def rational_loss(w, points):
    product = Q(1)
    for factor in w:
        product *= factor
    return sum((y - product * x) ** 2 for x, y in points) / Q(2 * len(points))


def bumped(w, *steps):
    w = list(w)
    for k, step in steps:
        w[k] += step
    return w


def rational_gradient(w, points):
    """Central differences; exact, because the loss is quadratic in each single weight."""
    return [
        (rational_loss(bumped(w, (k, 1)), points) - rational_loss(bumped(w, (k, -1)), points)) / 2
        for k in range(len(w))
    ]


def rational_hessian(w, points):
    """Exact second differences, for the same reason."""

    def entry(k, m):
        if k == m:
            parts = (rational_loss(bumped(w, (k, s)), points) * c for s, c in ((1, 1), (0, -2), (-1, 1)))
            return sum(parts)
        signs = [(s, t) for s in (1, -1) for t in (1, -1)]
        return sum(s * t * rational_loss(bumped(w, (k, s), (m, t)), points) for s, t in signs) / Q(4)

    return [[entry(k, m) for m in range(len(w))] for k in range(len(w))]


def floats(values):
    return np.array(values, dtype=object).astype(float)


def xy(points):
    return {"x": floats([p[0] for p in points]), "y": floats([p[1] for p in points])}


@modest
@given(weights, data)
def test_derivatives_equal_exact_rational_differences(w, points):
    np.testing.assert_allclose(chain.loss(floats(w), **xy(points)), float(rational_loss(w, points)), rtol=1e-12)
    close = {"rtol": 1e-11, "atol": 1e-10}
    np.testing.assert_allclose(chain.gradient(floats(w), **xy(points)), floats(rational_gradient(w, points)), **close)
    np.testing.assert_allclose(chain.hessian(floats(w), **xy(points)), floats(rational_hessian(w, points)), **close)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_derivatives_equal_sympys(depth):
    names = sympy.symbols(f"w1:{depth + 1}")
    points = [(Q(1, 3), Q(2)), (Q(-5, 7), Q(1, 2)), (Q(2), Q(-3, 5))]
    points_s = [tuple(sympy.Rational(v.numerator, v.denominator) for v in p) for p in points]
    symbolic = sum((y - sympy.prod(names) * x) ** 2 for x, y in points_s) / (2 * len(points))
    at = dict(zip(names, [sympy.Rational(n, 7) for n in (3, -11, 5, 0)], strict=False))
    w = [float(at[name]) for name in names]
    gradient = [float(sympy.diff(symbolic, a).subs(at)) for a in names]
    hessian = [[float(sympy.diff(symbolic, a, b).subs(at)) for b in names] for a in names]
    assert chain.loss(w, **xy(points)) == pytest.approx(float(symbolic.subs(at)), rel=1e-14)
    np.testing.assert_allclose(chain.gradient(w, **xy(points)), gradient, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(chain.hessian(w, **xy(points)), hessian, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("zeros", [(), (2,), (0, 5), (1, 2, 3)])
def test_derivatives_equal_float64_autodiff(zeros):
    rng = np.random.default_rng(len(zeros))
    w, x, y = rng.normal(size=6), rng.normal(size=9), rng.normal(size=9)
    w[list(zeros)] = 0
    xs, ys = torch.tensor(x), torch.tensor(y)

    def independent_loss(v):
        out = xs
        for k in range(6):
            out = v[k] * out
        return ((ys - out) ** 2).sum() / 18

    v = torch.tensor(w)
    np.testing.assert_allclose(
        chain.gradient(w, x=x, y=y), torch.func.grad(independent_loss)(v), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        chain.hessian(w, x=x, y=y), torch.func.hessian(independent_loss)(v), rtol=1e-12, atol=1e-14
    )


def test_batch_axes_are_independent_chains():
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(2, 3, 5)), rng.normal(size=4), rng.normal(size=4)
    for function, shape in ((chain.loss, ()), (chain.gradient, (5,)), (chain.hessian, (5, 5))):
        together = function(w, x=x, y=y)
        assert together.shape == (2, 3, *shape)
        for i, j in np.ndindex(2, 3):
            np.testing.assert_allclose(together[i, j], function(w[i, j], x=x, y=y), rtol=1e-14)
    together = chain.log_magnitudes(w, x=x, y=y)
    for i, j in np.ndindex(2, 3):
        alone = chain.log_magnitudes(w[i, j], x=x, y=y)
        np.testing.assert_allclose(together.gradient[i, j], alone.gradient, rtol=1e-13)
        np.testing.assert_allclose(together.diagonal[i, j], alone.diagonal, rtol=1e-13)
        np.testing.assert_allclose(together.off_diagonal[i, j], alone.off_diagonal, rtol=1e-13)


@modest
@given(hnp.arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 7)), elements=st.floats(-3, 3)))
def test_hessian_is_symmetric(w):
    h = chain.hessian(w, x=[1.0, -2.0], y=[0.5, 3.0])
    np.testing.assert_allclose(h, h.swapaxes(-1, -2), rtol=1e-12, atol=1e-290)


def test_data_of_other_shapes_raise():
    for function in (chain.loss, chain.gradient, chain.hessian, chain.log_magnitudes, chain.inertia):
        for x, y in (([1.0, 2.0], [1.0]), (1.0, [1.0, 2.0]), (np.ones((2, 2)), np.ones((2, 2)))):
            with pytest.raises(ValueError, match="x and y are scalars or vectors of one length"):
                function([1.0, 2.0], x=x, y=y)


# ---- log magnitudes


def direct_logs(w, x, y):
    g, h = chain.gradient(w, x=x, y=y), chain.hessian(w, x=x, y=y)
    off = np.abs(h[~np.eye(len(w), dtype=bool)])
    with np.errstate(divide="ignore"):
        return np.log(np.abs(g)), np.log(np.abs(np.diag(h))), np.log(off.mean())


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0, -2.0, 0.3], [0.5, 1.0, 2.0]),
        (1.0, 2.0),
        (1.0, -2.0),
        (1.5, 0.0),
        ([1.0, 1.0], [1.0, -1.0]),
        ([1.0, 2.0], [-1.0, -3.0]),
    ],
)
@pytest.mark.parametrize("depth", [2, 3, 12])
@pytest.mark.parametrize("tau", [0.7, 2.0, 3.5])
def test_log_magnitudes_are_logarithms_of_the_derivatives(x, y, depth, tau):
    w = np.random.default_rng(depth).uniform(-tau, tau, depth)
    logs = chain.log_magnitudes(w, x=x, y=y)
    gradient, diagonal, off_diagonal = direct_logs(w, x, y)
    np.testing.assert_allclose(logs.gradient, gradient, atol=1e-10)
    np.testing.assert_allclose(logs.diagonal, diagonal, atol=1e-10)
    np.testing.assert_allclose(logs.off_diagonal, off_diagonal, atol=1e-10)


@modest
@given(st.lists(st.floats(0.25, 4).flatmap(lambda a: st.sampled_from([a, -a])), min_size=2, max_size=8))
def test_log_magnitudes_hold_for_any_signs(w):
    w = np.array(w)
    residual = np.prod(w) * 3.0 - 0.7
    if min(abs(residual), abs(2 * 3.0 * np.prod(w) - 0.7)) < 1e-3:
        return
    logs = chain.log_magnitudes(w, x=np.sqrt(3.0), y=0.7 / np.sqrt(3.0))
    for value, expected in zip(
        (logs.gradient, logs.diagonal, logs.off_diagonal), direct_logs(w, np.sqrt(3.0), 0.7 / np.sqrt(3.0)), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=1e-9)


@pytest.mark.parametrize("w", [[1e-20, 1.0], [1e-9, 1.0, -2.0]])
def test_log_magnitudes_hold_with_one_tiny_weight(w):
    logs = chain.log_magnitudes(w, x=1.0, y=1.0)
    np.testing.assert_allclose(logs.off_diagonal, direct_logs(np.array(w), 1.0, 1.0)[2], atol=1e-9)


def exact_log_magnitudes(w, m_xx, m_xy):
    w = [mp.mpf(float(v)) for v in w]
    product = mp.fprod(w)
    inverse, squares = mp.fsum(1 / abs(v) for v in w), mp.fsum(1 / v**2 for v in w)
    depth = len(w)
    pairs = (inverse**2 - squares) / (depth * (depth - 1))
    gradient = mp.log(abs((m_xx * product - m_xy) * product / w[3]))
    diagonal = mp.log(m_xx * (product / w[3]) ** 2)
    return gradient, diagonal, mp.log(abs((2 * m_xx * product - m_xy) * product) * pairs)


def test_the_shortcut_over_pairs_is_the_sum_over_pairs():
    w = [mp.mpf(v) for v in (0.5, -1.5, 2.0, 0.25)]
    product = mp.fprod(w)
    pairs = [abs((2 * 3 * product - 2) * product / (w[k] * w[m])) for k, m in combinations(range(4), 2)]
    assert abs(exact_log_magnitudes(w, 3, 2)[2] - mp.log(mp.fsum(pairs) / len(pairs))) < 1e-40


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_log_magnitudes_survive_depth_ten_thousand(tau):
    w = tau * (1 - np.random.default_rng(5).random(10_000))
    x, y = [1.0, 2.0], [0.5, -2.0]
    logs = chain.log_magnitudes(w, x=x, y=y)
    assert all(np.all(np.isfinite(v)) for v in (logs.gradient, logs.diagonal, logs.off_diagonal))
    assert abs(logs.gradient[3]) > 745
    exact = exact_log_magnitudes(w, mp.mpf("2.5"), mp.mpf("-1.75"))
    for value, expected in zip((logs.gradient[3], logs.diagonal[3], logs.off_diagonal), exact, strict=True):
        assert abs(mp.mpf(float(value)) / expected - 1) < 1e-12


def test_a_zero_weight_has_no_log_magnitudes():
    with pytest.raises(ValueError, match="A weight is zero"):
        chain.log_magnitudes([[1.0, 2.0], [0.0, 1.0]], x=1.0, y=1.0)


def test_depth_one_has_no_off_diagonal():
    logs = chain.log_magnitudes([[0.5], [-2.0]], x=[1.0, 2.0], y=[1.0, 0.0])
    assert logs.off_diagonal.shape == (2,)
    assert np.all(np.isnan(logs.off_diagonal))
    np.testing.assert_allclose(logs.gradient[:, 0], np.log([0.75, 5.5]), rtol=1e-13)
    np.testing.assert_allclose(logs.diagonal[:, 0], np.log(2.5), rtol=1e-13)


def test_a_vanishing_magnitude_has_logarithm_minus_infinity():
    assert np.all(chain.log_magnitudes([2.0, 0.5], x=1.0, y=1.0).gradient == -np.inf)
    nothing = chain.log_magnitudes([2.0, 0.5], x=0.0, y=1.0)
    assert np.all(nothing.gradient == -np.inf)
    assert np.all(nothing.diagonal == -np.inf)
    assert nothing.off_diagonal == -np.inf


# ---- inertia


def counts(w, *, x, y):
    return tuple(int(count) for count in chain.inertia(w, x=x, y=y))


def eigenvalue_counts(w, *, x, y):
    eigenvalues = np.linalg.eigvalsh(chain.hessian(w, x=x, y=y))
    zero = np.abs(eigenvalues) <= 1e-11 * np.abs(eigenvalues).max(axis=-1, keepdims=True)
    signs = np.where(zero, 0, np.sign(eigenvalues))
    return [np.sum(signs == s, axis=-1) for s in (1, -1, 0)]


def random_weights(size, depth, rng):
    return rng.uniform(0.5, 2, (size, depth)) * rng.choice([-1, 1], (size, depth))


DATA = {
    "one point": ([1.0], [1.0]),
    "several points": ([1.0, -2.0, 0.5], [2.0, -0.5, 1.0]),
    "a negative target": ([1.0, 2.0], [-0.5, -1.0]),
}
REGIMES = {  # range of P / (m_xy / m_xx) where s = (L - 1) / (2L - 1), and the counts that it must give
    "below zero": (lambda s: (-2, -0.2), lambda depth: (1, depth - 1, 0)),
    "small": (lambda s: (0.1 * s, 0.9 * s), lambda depth: (depth - 1, 1, 0)),
    "convex": (lambda s: (0.9 * s + 0.1, 0.1 * s + 0.9), lambda depth: (depth, 0, 0)),
    "above the target": (lambda s: (1.1, 3), lambda depth: (1, depth - 1, 0)),
}


@pytest.mark.parametrize("points", DATA)
@pytest.mark.parametrize("regime", REGIMES)
def test_inertia_counts_the_eigenvalues_of_thousands_of_chains(regime, points):
    (x, y), (interval, expected), rng = DATA[points], REGIMES[regime], np.random.default_rng(0)
    for depth in (2, 3, 4, 5, 8):
        w = random_weights(300, depth, rng)
        product = np.dot(x, y) / np.dot(x, x) * rng.uniform(*interval((depth - 1) / (2 * depth - 1)), 300)
        w *= np.abs(product / w.prod(axis=1))[:, None] ** (1 / depth)
        w[:, 0] *= np.sign(w.prod(axis=1) * product)
        for count, by_eigenvalues, by_hand in zip(
            chain.inertia(w, x=x, y=y), eigenvalue_counts(w, x=x, y=y), expected(depth), strict=True
        ):
            np.testing.assert_array_equal(count, by_eigenvalues)
            np.testing.assert_array_equal(count, by_hand)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1.0, -2.0], [0.5, -1.0], {0: None, 1: (1, 1), 2: (1, 1), 3: (0, 0), 6: (0, 0)}),
        ([1.0, 1.0], [1.0, -1.0], {0: (1, 5), 1: (1, 0), 2: (0, 0), 3: (0, 0), 6: (0, 0)}),  # m_xy = 0
        (0.0, 1.0, {0: (0, 0), 1: (0, 0), 2: (0, 0), 3: (0, 0), 6: (0, 0)}),
    ],
    ids=["data", "m_xy = 0", "x = 0"],
)
def test_inertia_of_chains_with_zero_weights(x, y, expected):
    rng = np.random.default_rng(1)
    for zeros, signs in expected.items():
        w = random_weights(100, 6, rng)
        w[np.argsort(rng.random(w.shape), axis=1) < zeros] = 0
        result = chain.inertia(w, x=x, y=y)
        for count, by_eigenvalues in zip(result, eigenvalue_counts(w, x=x, y=y), strict=True):
            np.testing.assert_array_equal(count, by_eigenvalues)
        if signs is not None:
            np.testing.assert_array_equal(np.transpose(result), [(*signs, 6 - sum(signs))] * 100)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.5, 3.0, 1e-300, -1e200])
def test_inertia_of_one_layer_is_that_of_a_parabola(weight):
    assert counts([weight], x=1.0, y=1.0) == (1, 0, 0)
    assert counts([weight], x=2.0, y=-1.0) == (1, 0, 0)
    assert counts([weight], x=0.0, y=1.0) == (0, 0, 1)


def exact_counts(w, points):
    """Descartes' rule of signs, which is exact as all roots of the characteristic polynomial are real."""
    p = sympy.Matrix(rational_hessian(w, points)).charpoly().all_coeffs()

    def changes(coefficients):
        signs = [c > 0 for c in coefficients if c != 0]
        return sum(a != b for a, b in pairwise(signs))

    mirrored = [(-1) ** k * c for k, c in enumerate(p)]
    return changes(p), changes(mirrored), len(p) - 1 - max(k for k, c in enumerate(p) if c != 0)


# with 1, 2 or 4 points every number is dyadic, so that floating point finds every tie
dyadic_data = st.sampled_from([1, 2, 4]).flatmap(lambda n: st.lists(st.tuples(halves, halves), min_size=n, max_size=n))


@many
@given(weights, dyadic_data)
def test_inertia_equals_exact_rational_inertia(w, points):
    assert counts(floats(w), **xy(points)) == exact_counts(w, points)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("sign", [1, -1])
def test_inertia_at_exact_ties(depth, sign):
    w = [Q(sign), Q(2), Q(1, 2), Q(-4), Q(-1, 4)][:depth]
    product = np.prod(w)
    at_target = [(Q(1), product), (Q(2), 2 * product)]  # P = y/x: the gradient vanishes, the rank is 1
    assert counts(floats(w), **xy(at_target)) == exact_counts(w, at_target) == (1, 0, depth - 1)
    on_border = [(Q(1), (2 * depth - 1) * product / 2), (Q(1), (2 * depth - 1) * product / 2)]
    w[0] *= Q(depth - 1, 2)  # P = (L - 1) y / ((2L - 1) x)
    assert counts(floats(w), **xy(on_border)) == exact_counts(w, on_border) == (depth - 1, 0, 1)


def deep(last, *, up=1900, down=1900, zeros=0):
    """Depth 4000 with P = 2^up / 2^down * last, and partial products far beyond the range of floats."""
    w = np.repeat([2.0, 0.5, 1.0, last], [up, down, 3999 - up - down, 1])
    w[:zeros] = 0
    return w


# L - 1 signs are those of P (y - P), one is that of P ((2L - 1) P - (L - 1) y), and 3999/7999 = 0.49994
@pytest.mark.parametrize(
    ("w", "y", "expected"),
    [
        (deep(1.0, up=0), 1.0, (3999, 1, 0)),
        (deep(-1.0, up=0), 1.0, (1, 3999, 0)),
        (deep(-1.0, up=0), -1.0, (3999, 1, 0)),
        (deep(1.0, down=0), 1.0, (1, 3999, 0)),
        (deep(-1.0, down=0), 1.0, (1, 3999, 0)),
        (deep(-1.0, down=0), -1.0, (1, 3999, 0)),
        (deep(-0.7), 1.0, (1, 3999, 0)),
        (deep(0.4), 1.0, (3999, 1, 0)),
        (deep(0.4999), 1.0, (3999, 1, 0)),
        (deep(0.49995), 1.0, (4000, 0, 0)),
        (deep(0.9999), 1.0, (4000, 0, 0)),
        (deep(1.0001), 1.0, (1, 3999, 0)),
        (deep(-0.4999), -1.0, (3999, 1, 0)),
        (deep(-0.49995), -1.0, (4000, 0, 0)),
        (deep(-1.0001), -1.0, (1, 3999, 0)),
        (deep(1.0, up=0), 0.0, (1, 3999, 0)),
        (deep(-1.0, down=0), 0.0, (1, 3999, 0)),
        (deep(1.0, zeros=1), 1.0, (1, 1, 3998)),
        (deep(1.0, zeros=1), 0.0, (1, 0, 3999)),
        (deep(1.0, zeros=2), 1.0, (1, 1, 3998)),
        (deep(1.0, zeros=3), 1.0, (0, 0, 4000)),
    ],
)
def test_inertia_survives_depth_four_thousand(w, y, expected):
    assert counts(w, x=1.0, y=y) == expected
    assert counts(w, x=[1.0, 2.0], y=[y, 2 * y]) == expected
    assert counts(w[::-1], x=1.0, y=y) == expected
    assert counts(w, x=0.0, y=1.0) == (0, 0, 4000)


@pytest.mark.parametrize(("last", "expected"), [(1.005e161, (1, 3, 0)), (0.995e161, (4, 0, 0))])
def test_inertia_survives_products_without_their_digits(last, expected):
    w = [1e-160, 1e-162, 1e161, last]  # the product of the first two has one digit left
    assert counts(w, x=1.0, y=1.0) == expected
    assert counts(w[::-1], x=1.0, y=1.0) == expected


def test_inertia_has_the_shape_of_the_batch():
    rng = np.random.default_rng(2)
    w = random_weights(24, 5, rng).reshape(2, 3, 4, 5)
    w[0] *= 1e-90  # through logarithms
    w[1, 0, :, :2] = 0
    together = chain.inertia(w, x=[1.0, 2.0], y=[2.0, 1.0])
    assert all(count.shape == (2, 3, 4) and count.dtype.kind == "i" for count in together)
    for at in np.ndindex(2, 3, 4):
        assert tuple(int(count[at]) for count in together) == counts(w[at], x=[1.0, 2.0], y=[2.0, 1.0])
    assert [count.shape for count in chain.inertia(np.empty((0, 3)), x=1.0, y=1.0)] == [(0,)] * 3


exact_weights = st.integers(-16, 16).map(lambda n: n / 4)  # products of ten are exact in any order
powers = st.builds(lambda s, k: s * 2.0**k, st.sampled_from([1, -1]), st.integers(-300, 300))  # y = 0.7 is no tie


@many
@given(
    st.one_of(st.lists(exact_weights, min_size=1, max_size=10), st.lists(powers, min_size=1, max_size=10)),
    st.sampled_from([0.7, -0.7, 0.25, 1.0, 0.0]),
    st.randoms(use_true_random=False),
)
def test_inertia_does_not_see_the_order_or_two_signs(w, y, random):
    if max(map(abs, w)) > 4:
        y = 0.7
    positive, negative, zero = chain.inertia(w, x=1.0, y=y)
    assert positive + negative + zero == len(w)
    assert min(positive, negative, zero) >= 0
    assert counts(random.sample(w, len(w)), x=1.0, y=y) == (positive, negative, zero)
    flipped = np.array(w)
    flipped[random.sample(range(len(w)), 2 * (len(w) > 1))] *= -1
    assert counts(flipped, x=1.0, y=y) == (positive, negative, zero)


@pytest.mark.parametrize("function", [chain.loss, chain.gradient, chain.hessian, chain.log_magnitudes, chain.inertia])
@pytest.mark.parametrize("w", [[], 0.5])
def test_a_chain_has_at_least_one_weight(function, w):
    with pytest.raises(ValueError, match="at least one weight"):
        function(w, x=1.0, y=1.0)


def test_inertia_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="not a number"):
        chain.inertia([np.nan, 1.0], x=1.0, y=1.0)
