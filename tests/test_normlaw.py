"""The law of the norm of random signals, held against mpmath, Fractions, and matrices that really are multiplied."""

import tracemalloc
from collections import Counter
from fractions import Fraction as Q
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy import special, stats

from vclib import moments, normlaw

modest = settings(deadline=None, max_examples=60, derandomize=True)
both = pytest.mark.parametrize("relu", [False, True])
HALF = 0.5  # the variance at which one factor is half a chi-square


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def forty_digits():
    with mp.workdps(40):
        yield


# ---- oracles: survival function and density of T at variance 1/2


def factor(width, relu):
    """One factor is a mixture of gamma variables: its shapes and weights."""
    if not relu:
        return [mp.mpf(width) / 2], [mp.mpf(1)]
    alive = mp.mpf(2) ** width - 1
    return [mp.mpf(k) / 2 for k in range(1, width + 1)], [mp.binomial(width, k) / alive for k in range(1, width + 1)]


def mean_and_variance(width, relu):
    shapes, weights = factor(width, relu)
    mean = mp.fdot(weights, [mp.psi(0, a) for a in shapes])
    return mean, mp.fdot(weights, [mp.psi(1, a) + (mp.psi(0, a) - mean) ** 2 for a in shapes])


def one_layer(x, width, relu):
    shapes, weights = factor(width, relu)
    survival = mp.fdot(weights, [mp.gammainc(a, x, regularized=True) for a in shapes])
    return survival, mp.fdot(weights, [mp.exp((a - 1) * mp.log(x) - x - mp.loggamma(a)) for a in shapes])


def of_exponentials(x, depth):
    """At width 2, factors are exponential variables."""
    survival = mp.meijerg([[], [1]], [[0] + [1] * depth, []], x)
    return survival, mp.meijerg([[], []], [[0] * depth, []], x)


def two_layers(x, width, relu):
    """The density of a product of two gamma variables is a Bessel function; the survival function integrates it."""
    shapes, weights = factor(width, relu)

    def density(t):
        pairs = product(zip(shapes, weights, strict=True), repeat=2)
        constants = Counter()
        for (a, v), (b, w) in pairs:
            constants[abs(a - b), (a + b) / 2] += 2 * v * w / mp.gamma(a) / mp.gamma(b)
        return mp.fsum(c * t ** (m - 1) * mp.besselk(order, 2 * mp.sqrt(t)) for (order, m), c in constants.items())

    root = mp.sqrt(x)
    return mp.quad(lambda s: 2 * s * density(s**2), [root, root + 3, root + 25]), density(x)


def by_inversion(log_x, width, depth, relu):
    """Survival function and density of ln T, integrated along a vertical line that is not that of vclib."""
    shapes, weights = factor(width, relu)
    weights = [w / mp.gamma(a) for w, a in zip(weights, shapes, strict=True)]
    scale = 1 / mp.sqrt(depth * mean_and_variance(width, relu)[1])

    def transform(t):
        s = mp.mpc(scale * 2 / 3, t * scale)
        return mp.fdot(weights, [mp.gamma(a + s) for a in shapes]) ** depth * mp.exp(-s * log_x), s

    def integral(function):
        return scale / mp.pi * mp.quad(lambda t: function(*transform(t)).real, [0, 3, 6, 12, 24, 48])

    return integral(lambda value, s: value / s), integral(lambda value, s: value)


def check_log_median(width, depth, relu, oracle, *, log=False, tolerance=1e-12):
    """ln of the median must agree; the oracle need not know the median, as one Newton step tells the error."""
    log_x = mp.mpf(float(normlaw.median(width, depth, sigma2=HALF, relu=relu, log=True)))
    survival, density = oracle(log_x if log else mp.exp(log_x))
    error = (survival - 0.5) / (density if log else density * mp.exp(log_x))
    assert abs(error) < tolerance
    x = log_x + 0.7  # and another point
    survival = oracle(x if log else mp.exp(x))[0]
    assert abs(normlaw.cdf(float(x), width, depth, sigma2=HALF, relu=relu) - (1 - survival)) < tolerance


# ---- medians and distribution functions


@pytest.mark.parametrize(("width", "relu"), [*((d, False) for d in (1, 2, 3, 7, 40)), (2, True), (4, True)])
def test_one_layer_against_gamma_functions(width, relu):
    check_log_median(width, 1, relu, lambda x: one_layer(x, width, relu))


@pytest.mark.parametrize("width", [1000, 10**6])
def test_one_wide_layer(width):
    probability = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    value = normlaw.quantile(probability, width, 1, sigma2=HALF)
    np.testing.assert_allclose(value, special.gammaincinv(width / 2, probability), rtol=1e-12)
    np.testing.assert_allclose(normlaw.cdf(np.log(value), width, 1, sigma2=HALF), probability, atol=1e-12)


def test_wide_relu_layers_against_a_sum_in_floats():
    width, depth, c = 1000, 10, 7.0
    chances = stats.binom(width, 0.5).pmf(k := np.arange(1, width + 1))
    x = normlaw.quantile([0.01, 0.5, 0.9], width, depth, sigma2=HALF, relu=True, log=True)
    s = c + 1j * np.linspace(-120, 120, 4001)
    growth = special.loggamma(k / 2 + s[:, None]) - special.gammaln(k / 2) - s[:, None] * np.log(width / 4)
    transform = (np.exp(growth) @ chances) ** depth
    centred = x[:, None] - depth * np.log(width / 4)
    survival = (transform * np.exp(-s * centred) / s).real.sum(axis=1) * (s[1] - s[0]).imag / (2 * np.pi)
    np.testing.assert_allclose(1 - survival, [0.01, 0.5, 0.9], rtol=0, atol=1e-10)


def test_one_relu_layer_takes_few_nodes():
    assert len(normlaw._law(10, True).contour(1, True)[0]) < 5000


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_width_two_is_a_product_of_exponentials(depth):
    check_log_median(2, depth, False, lambda x: of_exponentials(x, depth))


@pytest.mark.parametrize(("width", "relu"), [(1, False), (4, False), (2, True)])
def test_two_layers_against_bessel_functions(width, relu):
    with mp.workdps(18):
        check_log_median(width, 2, relu, lambda x: two_layers(x, width, relu))


@pytest.mark.parametrize(("width", "depth", "relu"), [(3, 200, False), (1, 500, False), (4, 60, True), (7, 30, True)])
def test_deep_networks_against_another_inversion(width, depth, relu):
    with mp.workdps(25):
        check_log_median(width, depth, relu, lambda x: by_inversion(x, width, depth, relu), log=True)


def test_the_oracles_agree():
    x = mp.mpf("0.3")
    with mp.workdps(20):
        survival, density = by_inversion(mp.log(x), 2, 2, False)
        others = of_exponentials(x, 2), two_layers(x, 2, False), (survival, density / x)
        for one, other in ((of_exponentials(x, 1), one_layer(x, 2, False)), *pairwise(others)):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-15


@pytest.mark.parametrize(("width", "relu"), [(1, False), (3, False), (3, True), (1000, True)])
def test_great_depths_against_cornish_and_fisher(width, relu):
    mean, variance = mean_and_variance(width, relu)
    shapes, weights = factor(width, relu)
    offsets = [mp.psi(0, a) - mean for a in shapes]
    third = mp.fdot(weights, [mp.psi(2, a) + 3 * o * mp.psi(1, a) + o**3 for a, o in zip(shapes, offsets, strict=True)])
    depth = 10**6
    exact = depth * mean - third / (6 * variance)
    assert abs(mp.mpf(float(normlaw.median(width, depth, sigma2=HALF, relu=relu, log=True))) - exact) < 1e-5


def test_relu_of_width_one_never_gates_what_is_alive():
    t = np.linspace(-5, 3, 9)
    for depth in (1, 4, 300):
        mine = normlaw.cdf(t, 1, depth, sigma2=0.7, relu=True)
        np.testing.assert_array_equal(mine, normlaw.cdf(t, 1, depth, sigma2=0.7))


@modest
@given(st.floats(1e-9, 1 - 1e-9), st.integers(1, 60), st.integers(1, 3000), st.booleans(), st.floats(-0.4, 3))
def test_quantile_and_cdf_are_inverse(probability, width, depth, relu, tilt):
    law = {"sigma2": 1.3 / width, "relu": relu, "tilt": tilt}
    value = normlaw.quantile(probability, width, depth, log=True, **law)
    assert normlaw.cdf(value, width, depth, **law) == pytest.approx(probability, rel=1e-9, abs=1e-12)


@modest
@given(st.integers(1, 60), st.integers(1, 3000), st.booleans())
def test_cdf_grows_from_zero_to_one(width, depth, relu):
    middle = normlaw.median(width, depth, sigma2=1.0, relu=relu, log=True)
    spread = normlaw.quantile(0.9, width, depth, sigma2=1.0, relu=relu, log=True) - middle
    value = normlaw.cdf(middle + np.linspace(-5, 5, 41) * spread, width, depth, sigma2=1.0, relu=relu)
    assert np.all((value >= 0) & (value <= 1))
    assert np.all(np.diff(value) >= -1e-13)
    assert value[20] == pytest.approx(0.5, abs=1e-13)


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (3, 50), (1000, 2), (2, 10**6)])
@both
def test_far_tails_are_zero_and_one(width, depth, relu):
    far = 1e4 * (depth + 1)
    value = normlaw.cdf([-far, far], width, depth, sigma2=1.0 / width, relu=relu)
    np.testing.assert_allclose(value, [0, 1], atol=1e-14)


@both
def test_variance_only_shifts_the_logarithm(relu):
    at = {"relu": relu, "log": True}
    shift = normlaw.median(5, 40, sigma2=0.7, **at) - normlaw.median(5, 40, sigma2=HALF, **at)
    assert shift == pytest.approx(40 * np.log(1.4), rel=1e-14)
    assert normlaw.median(5, 3, sigma2=0.7, relu=relu) == np.exp(normlaw.median(5, 3, sigma2=0.7, **at))


# ---- inner functions


@pytest.mark.parametrize("a", [0.5, 1, 1.5, 5, 16, 100, 1e4, 1e6])
def test_growth_of_the_gamma_function(a):
    small, large = [1e-9, 1e-6 + 1e-6j, 1e-4j], [1e-2j, 0.1 + 0.2j, -0.15 + 0.01j, 1 + 3j, 0.3 + 20j, 50 + 500j, 3000j]
    with mp.workdps(60):
        x = mp.mpf(a)
        exact = [mp.loggamma(x + s) - mp.loggamma(x) - mp.mpc(s) * mp.psi(0, x) for s in (*small, *large)]
    value = normlaw._log_gamma_growth(np.array([float(a)]), np.array([*small, *large], complex))[:, 0]
    error = [float(abs(mp.mpc(v) - e)) for v, e in zip(value, exact, strict=True)]
    size = np.array(exact, complex)
    assert np.all(error <= 1e-13 * np.abs(size) + 3e-22 * (np.abs(size) < 1e-7))  # what rounds to 0 is harmless


@pytest.mark.parametrize("width", [1, 2, 3, 10, 100, 1000])
@both
def test_mean_and_variance_of_one_factor(width, relu):
    law, exact = normlaw._law(width, relu), mean_and_variance(width, relu)
    np.testing.assert_allclose([law.mean, law.variance], np.array(exact, float), rtol=1e-13)


# ---- tilts


@pytest.mark.parametrize("tilt", [-0.3, 1.0])
@both
def test_tilt_of_one_layer_against_quadrature(tilt, relu):
    width, t = 3, 0.8
    shapes, weights = factor(width, relu)

    def part(x):
        """E[T^s; T <= x], by the substitution T^(a + s) = u, which takes the singularity away."""

        def of_one(a):
            b = a + tilt
            return mp.quad(lambda u: mp.exp(-(u ** (1 / b))), [0, x**b / 8, x**b]) / b / mp.gamma(a)

        return mp.fdot(weights, [of_one(a) for a in shapes])

    with mp.workdps(20):
        whole = mp.fsum(w * mp.gamma(a + tilt) / mp.gamma(a) for a, w in zip(shapes, weights, strict=True))
        exact = float(part(mp.exp(t)) / whole)
    assert normlaw.cdf(t, width, 1, sigma2=HALF, relu=relu, tilt=tilt) == pytest.approx(exact, abs=1e-12)


@both
def test_tilt_of_three_layers_against_weighted_samples(relu):
    law = {"sigma2": 0.4, "relu": relu}
    drawn = normlaw.sample(3, 3, size=200_000, rng=rng(), log=True, **law)
    drawn = drawn[np.isfinite(drawn)]
    weight = np.exp(drawn)
    for t in normlaw.quantile([0.1, 0.5, 0.9], 3, 3, tilt=1.0, log=True, **law):
        share = normlaw.cdf(t, 3, 3, tilt=1.0, **law)
        residual = weight * ((drawn <= t) - share)
        assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(len(residual))
        assert residual.std() / np.sqrt(len(residual)) < 0.01 * weight.mean()


# ---- Lyapunov exponents and variances


@pytest.mark.parametrize("width", [1, 2, 10, 100])
@both
def test_lyapunov_exponent(width, relu):
    exact = float(mp.log(2 * mp.mpf(0.3)) + mean_and_variance(width, relu)[0])
    assert normlaw.lyapunov_exponent(width, sigma2=0.3, relu=relu) == pytest.approx(exact, rel=1e-13)
    star = normlaw.critical_variance(width, relu=relu)
    assert normlaw.lyapunov_exponent(width, sigma2=star, relu=relu) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("relu", "first", "second"), [(False, Q(1), Q(5, 6)), (True, Q(5, 2), Q(173, 24))])
def test_expansion_of_the_critical_variance(relu, first, second):
    widths = np.array([500, 1000, 2000])
    scaled = widths * normlaw.critical_variance(widths, relu=relu) / (2 if relu else 1)
    rest = (scaled - 1 - float(first) / widths - float(second) / widths**2) * widths**3.0
    np.testing.assert_allclose(rest[1:], rest[0], rtol=0.1)  # the next order: rest / width^3
    assert 0.1 < abs(rest[0]) < 100


@pytest.mark.parametrize("width", [1, 3])
@both
def test_optimal_variance(width, relu):
    depths = np.array([1, 10, 100, 1000, 10_000])
    optimal = normlaw.optimal_variance(width, depths, relu=relu)
    np.testing.assert_allclose(normlaw.median(width, depths, sigma2=optimal, relu=relu, log=True), 0, atol=1e-11)
    gap = np.abs(optimal - normlaw.critical_variance(width, relu=relu))
    assert np.all(np.diff(gap) < 0)
    assert gap[-1] == pytest.approx(gap[-2] / 10, rel=0.01)


# ---- death


def test_death_against_fractions():
    widths, depths = np.array([1, 2, 7, 30, 60, 200])[:, None], np.array([0, 1, 2, 10, 1000])
    exact = [[float(1 - (1 - Q(1, 2 ** int(d))) ** int(depth)) for depth in depths] for d in widths[:, 0]]
    value = normlaw.death_probability(widths, depths)
    np.testing.assert_allclose(value, exact, rtol=1e-14)
    np.testing.assert_array_equal(value[:, 0], 0)
    assert np.all(value[:, 1:] > 0)


# ---- samples


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 10])
@both
def test_samples_follow_the_law(width, relu):
    depth, law = 12, {"sigma2": 1.5 / width, "relu": relu}
    drawn = normlaw.sample(width, depth, size=10_000, rng=rng(width), log=True, **law)
    alive = drawn[np.isfinite(drawn)]
    assert np.all(drawn[~np.isfinite(drawn)] == -np.inf)
    death = normlaw.death_probability(width, depth) if relu else 0.0
    assert abs(len(drawn) - len(alive) - len(drawn) * death) <= 4 * np.sqrt(len(drawn) * death * (1 - death))
    if len(alive):
        assert stats.kstest(alive, lambda t: normlaw.cdf(t, width, depth, **law)).pvalue > 0.005
    if len(alive) > 100:
        assert stats.kstest(alive, lambda t: normlaw.cdf(t, width + 1, depth, **law)).pvalue < 1e-6


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 10_000])
@both
def test_sizes_seeds_and_logarithms(size, relu):
    law = {"width": 6, "depth": 18, "sigma2": 0.3, "relu": relu, "size": size}
    plain, log = normlaw.sample(rng=rng(), **law), normlaw.sample(rng=rng(), log=True, **law)
    assert plain.shape == log.shape == (size,)
    np.testing.assert_array_equal(plain, np.exp(log))
    np.testing.assert_array_equal(plain, normlaw.sample(rng=rng(), **law))


def test_deep_and_narrow_samples_stay_finite():
    drawn = normlaw.sample(1, 2000, sigma2=1.0, size=3000, rng=rng(), log=True)
    assert np.all(np.isfinite(drawn))
    assert drawn.max() < -745  # beyond the range of floats
    assert stats.kstest(drawn, lambda t: normlaw.cdf(t, 1, 2000, sigma2=1.0)).pvalue > 0.005


# ---- simulations


def uniform(generator):
    return lambda shape: generator.uniform(-np.sqrt(3), np.sqrt(3), shape)


def simulated(keep, *, generator, draw=None, width=3, depth=5, sigma2=0.4, size=20_000, relu=False):
    """What ``keep`` makes of the batches, joined; inputs are Gaussian."""
    draw = draw or generator.standard_normal
    inputs = lambda n: generator.standard_normal((width, n))  # noqa: E731
    batches = normlaw.simulate(draw, inputs, width=width, depth=depth, sigma2=sigma2, relu=relu, size=size)
    return np.concatenate([keep(batch) for batch in batches])


@both
def test_simulated_and_drawn_norms_have_one_law(relu):
    depth, law = 20, {"sigma2": 0.6, "relu": relu}

    def logarithms(batch):
        norms = (np.maximum(batch, 0) if relu else batch)[[0, -1]]
        first, last = np.square(norms).sum(axis=1)
        with np.errstate(divide="ignore"):
            return np.log(last[first > 0] / first[first > 0])

    matrices = simulated(logarithms, generator=rng(1), depth=depth, size=20_000, **law)
    drawn = normlaw.sample(3, depth, size=20_000, rng=rng(2), log=True, **law)
    for values in (matrices, drawn):
        dead = np.isneginf(values).mean()
        expected = normlaw.death_probability(3, depth) if relu else 0
        assert abs(dead - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(values))
    alive = [values[np.isfinite(values)] for values in (matrices, drawn)]
    assert stats.ks_2samp(*alive).pvalue > 0.01


@both
def test_simulated_moments_of_uniform_weights(relu):
    width, depth, sigma2, p = 4, 2, 0.3, 0.5 if relu else 1.0

    def norms(batch):
        return np.stack([np.square(batch[-1]).sum(axis=0), (batch[-1] ** 4).sum(axis=0)], axis=1)

    generator = rng(3)
    at = {"width": width, "depth": depth, "sigma2": sigma2, "relu": relu}
    values = simulated(norms, generator=generator, draw=uniform(generator), size=150_000, **at)
    law = {"width": width, "sigma2": sigma2, "kappa": 1.8, "p": p, "z2": width * (width + 2.0), "z4": 3.0 * width}
    expected = ((p * width * sigma2) ** depth * width, *moments.fourth_moments(depth, **law))
    for value, exact in zip((values[:, 0], values[:, 0] ** 2, values[:, 1]), expected, strict=True):
        error = value.std() / np.sqrt(len(value))
        assert abs(value.mean() - exact) < 4 * error
        assert error < 0.03 * exact


def test_batches_of_signals():
    width, depth, generator, inputs = 7, 4, rng(), []

    def z(n):
        inputs.append(generator.standard_normal((width, n)))
        return inputs[-1]

    law = {"width": width, "depth": depth, "sigma2": 0.2, "relu": True}
    batches = list(normlaw.simulate(lambda shape: np.ones(shape), z, size=5000, **law))
    assert len(batches) == len(inputs) > 1
    assert sum(batch.shape[2] for batch in batches) == 5000
    for batch, start in zip(batches, inputs, strict=True):
        assert batch.shape[:2] == (depth + 1, width)
        np.testing.assert_array_equal(batch[0], start)
        for below, above in pairwise(batch):  # all weights are sigma
            total = np.sqrt(0.2) * np.maximum(below, 0).sum(axis=0)
            np.testing.assert_allclose(above, np.broadcast_to(total, above.shape), rtol=1e-12)


def test_rows_of_weights_make_entries_of_signals():
    weights = rng().standard_normal((2, 2, 3))
    law = {"width": 2, "depth": 1, "sigma2": 4.0, "size": 3}
    (batch,) = normlaw.simulate(lambda shape: weights, lambda n: np.arange(6.0).reshape(2, 3), **law)
    for n in range(3):
        np.testing.assert_allclose(batch[1, :, n], 2 * weights[:, :, n] @ batch[0, :, n], rtol=1e-14)


def test_no_samples_no_batches():
    assert not list(normlaw.simulate(None, None, width=2, depth=1, sigma2=1.0, size=0))


def test_memory_does_not_grow_with_the_size():
    peaks = []
    for size in (50_000, 50_000, 500_000):  # the first fills caches
        tracemalloc.start()
        generator, total = rng(), 0
        inputs = lambda n: np.ones((3, n))  # noqa: E731
        for batch in normlaw.simulate(generator.standard_normal, inputs, width=3, depth=5, sigma2=0.3, size=size):
            total += batch.shape[2]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == size
    assert peaks[2] < 1.05 * peaks[1]


# ---- broadcasting and errors


def drawn(width, depth, sigma2):
    return normlaw.sample(width, depth, sigma2=sigma2, size=1, rng=rng())


def first_batch(width, depth, sigma2):
    law = {"width": width, "depth": depth, "sigma2": sigma2}
    return next(normlaw.simulate(np.ones, lambda n: np.ones((2, n)), size=1, **law))


CALLS = {  # a function of some of these arguments
    normlaw.lyapunov_exponent: ("width", "sigma2"),
    normlaw.critical_variance: ("width",),
    normlaw.optimal_variance: ("width", "depth"),
    normlaw.median: ("width", "depth", "sigma2"),
    partial(normlaw.quantile, 0.3): ("width", "depth", "sigma2"),
    partial(normlaw.cdf, 0.3): ("width", "depth", "sigma2"),
    normlaw.death_probability: ("width", "depth"),
}
ONE_AT_A_TIME = dict.fromkeys((drawn, first_batch), ("width", "depth", "sigma2"))
GOOD = {"width": 2, "depth": 1, "sigma2": 1.0}


def wrong(name, values):
    every = CALLS | ONE_AT_A_TIME
    return [
        (call, {k: GOOD[k] for k in names} | {name: v})
        for call, names in every.items()
        if name in names
        for v in values
    ]


@pytest.mark.parametrize(("call", "names"), CALLS.items())
def test_arrays_broadcast(call, names):
    arrays = {"width": np.array([[1], [3], [8]]), "depth": np.array([1, 20]), "sigma2": np.array([0.2, 1.5])}
    table = call(**{name: arrays[name] for name in names})
    assert table.shape == (3, 2 if names[1:] else 1)
    for i, j in np.ndindex(table.shape):
        one = {name: arrays[name][i, 0] if name == "width" else arrays[name][j] for name in names}
        assert table[i, j] == call(**one)


@pytest.mark.parametrize(("call", "numbers"), wrong("width", (0, -1, 2.5, np.nan)))
def test_a_width_that_is_none_raises(call, numbers):
    with pytest.raises(ValueError, match="A width is a positive integer"):
        call(**numbers)


@pytest.mark.parametrize(("call", "numbers"), wrong("depth", (-1, 1.5, np.nan)))
def test_a_depth_that_is_none_raises(call, numbers):
    with pytest.raises(ValueError, match=f"A depth is an integer from {int(call != normlaw.death_probability)} on"):
        call(**numbers)


@pytest.mark.parametrize(("call", "numbers"), wrong("depth", (0,)))
def test_only_death_knows_depth_zero(call, numbers):
    if call != normlaw.death_probability:
        with pytest.raises(ValueError, match="A depth is an integer from 1 on"):
            call(**numbers)


@pytest.mark.parametrize(("call", "numbers"), wrong("sigma2", (0.0, -1.0, np.nan)))
def test_a_variance_that_is_none_raises(call, numbers):
    with pytest.raises(ValueError, match="A variance is positive"):
        call(**numbers)


@pytest.mark.parametrize("probability", [0, 1e-13, 1.0, 2, -1, np.nan, [0.5, 0]])
def test_a_probability_out_of_reach_raises(probability):
    with pytest.raises(ValueError, match="A probability must be between 1e-12 and 1 - 1e-12"):
        normlaw.quantile(probability, 2, 1, sigma2=1.0)


@pytest.mark.parametrize(
    ("tilt", "width", "relu"), [(-0.5, 1, False), (-2, 3, False), (np.nan, 3, False), (-0.5, 3, True)]
)
def test_a_tilt_without_a_moment_raises(tilt, width, relu):
    least = 0.5 if relu else width / 2
    for call in (normlaw.cdf, normlaw.quantile):
        with pytest.raises(ValueError, match=f"A tilt is above -{least} here"):
            call(0.5, width, 1, sigma2=1.0, relu=relu, tilt=tilt)


@pytest.mark.parametrize("width", [1, 10])
def test_the_median_of_a_thousand_layers_in_forty_digits(width):
    """Gil-Pelaez inversion of the characteristic function by mpmath: the distribution function is 1/2 at our median."""
    depth = 1000
    value = mp.mpf(float(normlaw.median(width, depth, sigma2=HALF, log=True)))
    with mp.workdps(40):
        half = mp.mpf(width) / 2
        spread = mp.sqrt(depth * mp.psi(1, half))

        def transform(t):
            log_phi = depth * (mp.loggamma(half + 1j * t) - mp.loggamma(half))
            return mp.exp(log_phi - 1j * t * value)

        nodes = mp.linspace(0, 14 / spread, 8)
        above = mp.quad(lambda t: mp.im(transform(t)) / t if t else depth * mp.psi(0, half) - value, nodes)
        density = mp.quad(lambda t: mp.re(transform(t)), nodes)
    assert abs(above / density) < 1e-12 * abs(value)
