"""Weight laws, held against integrals of their densities, samples and PyTorch's own initialisers."""

from fractions import Fraction as Q
from functools import partial

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vclib.initialization import WeightLaw, he, lecun, orthogonal, xavier

modest = settings(deadline=None, max_examples=30, derandomize=True)
LAWS = {"LeCun": lecun, "Xavier": xavier, "He": he}
fans = st.integers(1, 300)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@modest
@given(fans, fans)
def test_variances_are_those_of_the_papers(fan_in, fan_out):
    assert lecun(fan_in, fan_out).variance == Q(1, 3 * fan_in)
    assert xavier(fan_in, fan_out).variance == Q(2, fan_in + fan_out)
    assert he(fan_in, fan_out).variance == Q(2, fan_in)
    assert orthogonal(fan_in, fan_out).variance == Q(1, max(fan_in, fan_out))
    assert lecun(fan_in).variance == lecun(fan_in, fan_out).variance
    assert xavier(fan_in).variance == Q(1, fan_in)
    assert orthogonal(fan_in).variance == Q(1, fan_in)


def test_moments_are_integrals_of_the_densities():
    w = sympy.symbols("w", real=True)
    tau, sigma = sympy.symbols("tau sigma", positive=True)
    densities = {
        "uniform": (1 / (2 * tau), (w, -tau, tau)),
        "gaussian": (
            sympy.exp(-(w**2) / (2 * sigma**2)) / sympy.sqrt(2 * sympy.pi * sigma**2),
            (w, -sympy.oo, sympy.oo),
        ),
    }
    for family, (density, domain) in densities.items():
        moment = {k: sympy.integrate(w**k * density, domain) for k in (0, 2, 4)}
        assert sympy.simplify(moment[0]) == 1
        kappa = sympy.simplify(moment[4] / moment[2] ** 2)
        assert xavier(5, family=family).kurtosis == Q(int(kappa.p), int(kappa.q))
    variance = sympy.integrate(w**2 / (2 * tau), (w, -tau, tau))
    for law in (lecun(7), xavier(7, 3), he(7), orthogonal(7)):
        assert law.tau == pytest.approx(float(sympy.solve(variance - sympy.Rational(law.variance), tau)[0]), rel=1e-15)


@pytest.mark.parametrize("family", ["uniform", "gaussian"])
@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_variance_and_kurtosis(name, family):
    law = LAWS[name](6, 10, family=family)
    w = law.sample(20_000, 10, generator=rng(1)).numpy().ravel() / float(law.variance) ** 0.5
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, float(law.kurtosis))):
        sample = w**power
        assert abs(sample.mean() - expected) < 4 * sample.std() / np.sqrt(w.size), power
    reference = stats.uniform(-(3**0.5), 2 * 3**0.5) if family == "uniform" else stats.norm
    assert stats.kstest(w[:20_000], reference.cdf).pvalue > 0.01


@modest
@given(st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_the_uniform_law_never_leaves_its_interval(variance, seed):
    law = WeightLaw("any", "uniform", variance)
    w = law.sample(50, 40, generator=rng(seed))
    assert w.abs().max() <= law.tau
    assert w.max() > 0.9 * law.tau
    assert w.min() < -0.9 * law.tau


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 3, 4, 7), (7, 4), (4, 7), (1, 1), (1, 6), (6, 1)])
def test_orthogonal_matrices_are_orthonormal_along_the_shorter_side(shape):
    w = orthogonal(shape[-1], shape[-2]).sample(*shape, generator=rng())
    assert w.shape == shape
    product = w.mT @ w if shape[-2] >= shape[-1] else w @ w.mT
    identity = torch.eye(min(shape[-2:]), dtype=w.dtype).expand_as(product)
    torch.testing.assert_close(product, identity, rtol=0, atol=1e-13)


def test_copies_of_an_orthogonal_matrix_differ():
    w = orthogonal(3).sample(2, 3, 3, generator=rng())
    assert (w[0] - w[1]).abs().max() > 0.1


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 3), (8, 8), (3, 8), (8, 3)])
def test_orthogonal_entries_have_haars_moments(rows, columns):
    law = orthogonal(columns, rows)
    w = law.sample(20_000, rows, columns, generator=rng(2)).numpy()
    size = max(rows, columns)
    corner = w[:, 0, 0]
    for power, expected in ((1, 0), (2, 1 / size), (3, 0), (4, 3 / (size * (size + 2)))):
        every = w**power
        error = every.std(axis=0) / np.sqrt(len(w))
        assert np.all(np.abs(every.mean(axis=0) - expected) < 5 * error), power  # up to 64 entries at once
    assert float(law.kurtosis) == pytest.approx(3 * size / (size + 2))
    assert abs((corner**4).mean() * size**2 - law.kurtosis) < 4 * (corner**4).std() * size**2 / np.sqrt(len(w))


def test_orthogonal_kurtosis_is_the_integral_over_the_sphere():
    t = sympy.symbols("t", real=True)
    for size in (2, 3, 8):  # an entry of a unit vector: density proportional to (1 - t^2)^((size - 3) / 2)
        half_angle = {
            k: sympy.integrate(sympy.cos(t) ** k * sympy.sin(t) ** (size - 2), (t, 0, sympy.pi)) for k in (0, 2, 4)
        }
        exact = sympy.simplify(half_angle[4] * half_angle[0] / half_angle[2] ** 2)
        assert orthogonal(size).kurtosis == Q(int(exact.p), int(exact.q))


def test_haar_does_not_prefer_a_sign():
    # LAPACK's QR alone gives R a diagonal of fixed signs and Q a determinant that is not a fair coin
    w = orthogonal(3).sample(20_000, 3, 3, generator=rng(3))
    assert abs(torch.linalg.det(w).mean()) < 4 / 20_000**0.5
    trace = torch.diagonal(w, dim1=1, dim2=2).sum(dim=1)
    assert abs(trace.mean()) < 4 * trace.std() / 20_000**0.5
    assert abs(trace.square().mean() - 1) < 4 * trace.square().std() / 20_000**0.5  # E tr^2 = 1 for Haar's law


def test_lecun_is_what_nn_linear_draws():
    torch.manual_seed(0)
    weight = torch.nn.Linear(50, 4000).weight.detach()
    bound = lecun(50).tau
    assert weight.abs().max() <= bound * (1 + 1e-6)
    assert weight.abs().max() > 0.999 * bound
    assert bound == pytest.approx(50**-0.5, rel=1e-15)
    assert weight.var().item() == pytest.approx(float(lecun(50).variance), rel=0.02)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(40, 3000), (400, 300), (7, 20_000)])
def test_bounds_are_those_of_torch_nn_init(fan_in, fan_out):
    torch.manual_seed(1)
    initialisers = {
        xavier: torch.nn.init.xavier_uniform_,
        he: partial(torch.nn.init.kaiming_uniform_, nonlinearity="relu"),
        lecun: partial(torch.nn.init.kaiming_uniform_, a=5**0.5),
    }
    for law, initialise in initialisers.items():
        largest = initialise(torch.empty(fan_out, fan_in, dtype=torch.float64)).abs().max().item()
        assert largest <= law(fan_in, fan_out).tau * (1 + 1e-15)
        assert largest == pytest.approx(law(fan_in, fan_out).tau, rel=5e-4)


@pytest.mark.parametrize("law", [lecun, xavier, he])
def test_gaussian_deviations_are_those_of_torch_nn_init(law):
    torch.manual_seed(2)
    empty = torch.empty(300, 500, dtype=torch.float64)
    initialise = {
        xavier: torch.nn.init.xavier_normal_,
        he: partial(torch.nn.init.kaiming_normal_, nonlinearity="relu"),
        lecun: partial(torch.nn.init.kaiming_normal_, a=5**0.5),
    }[law]
    variance = initialise(empty).square().mean().item()
    assert abs(variance / float(law(500, 300).variance) - 1) < 4 * (2 / empty.numel()) ** 0.5


@pytest.mark.parametrize("make", [lecun, xavier, he, orthogonal])
@pytest.mark.parametrize("bad", [0, -3, 2.5])
def test_a_bad_fan_raises(make, bad):
    with pytest.raises(ValueError, match="positive integer, not"):
        make(bad)


@pytest.mark.parametrize("make", [xavier, orthogonal])
def test_a_bad_fan_out_raises(make):
    with pytest.raises(ValueError, match="positive integer, not 0"):
        make(4, 0)


@pytest.mark.parametrize("make", [lecun, xavier, he])
@pytest.mark.parametrize("family", ["cauchy", "orthogonal", ""])
def test_an_unfit_family_raises(make, family):
    message = r"call orthogonal\(\)" if family == "orthogonal" else "unknown; choose one of uniform, gaussian"
    with pytest.raises(ValueError, match=message):
        make(4, family=family)


def test_a_law_of_ones_own_is_checked():
    with pytest.raises(ValueError, match="unknown; choose one of uniform, gaussian, orthogonal"):
        WeightLaw("mine", "cauchy", 1.0)
    for variance in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="A variance is positive"):
            WeightLaw("mine", "uniform", variance)


@pytest.mark.parametrize("law", [lecun(6), he(6, family="gaussian"), orthogonal(6)])
def test_the_generator_decides(law):
    first, again, other = (law.sample(2, 6, 6, generator=rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("law", [lecun(6), he(6, family="gaussian"), orthogonal(6)])
def test_dtype_is_float64_unless_told_otherwise(law):
    assert law.sample(6, 6, generator=rng()).dtype == torch.float64
    assert law.sample(6, 6, generator=rng(), dtype=torch.float32).dtype == torch.float32
