"""Escape times and optimiser paths, held against quadrature, ODE solvers, torch.optim and plain loops."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy.integrate import solve_ivp

from vclib import chain, escape

modest = settings(deadline=None, max_examples=40, derandomize=True)
depths = st.integers(1, 64)


def near(value, exact, tolerance):
    """Relative, without pytest.approx's absolute tolerance: many times are tiny."""
    np.testing.assert_allclose(value, float(exact), rtol=tolerance, atol=0)


# ---- gradient flow


def quadrature(depth, w0, w1, x, y):
    """The integral of dw / (x y w^(L-1) - x^2 w^(2L-1)) in ln w, to 30 digits."""
    with mp.workdps(30):
        w0, w1, x, y = (mp.mpf(float(value)) for value in (w0, w1, x, y))
        pieces = mp.linspace(mp.log(w0), mp.log(w1), 3 + depth // 16)
        return mp.quad(lambda s: mp.exp((2 - depth) * s) / (x * y - x**2 * mp.exp(depth * s)), pieces)


def integrated(flow, end, state, begin=0.0):
    """The state at the end. The solver tries steps that overflow, and rejects them."""
    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(flow, (begin, end), state, method="DOP853", rtol=1e-11, atol=1e-300)
    assert solution.success, solution.message
    return solution.y[:, -1]


def flowed(depth, w0, time, x, y):
    """The weight after that time, by an ODE solver."""
    return integrated(lambda t, w: x * y * w ** (depth - 1) - x**2 * w ** (2 * depth - 1), time, [w0])[0]


INTERVALS = [(0.3, 0.9), (0.8, 0.97), (0.95, 0.9999), (0.001, 0.002), (1.6, 1.05), (1.2, 1.01), (4.0, 1.5)]


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize(("u0", "u1"), INTERVALS)
@pytest.mark.parametrize(("x", "y"), [(1.0, 1.0), (0.7, 1.9)])
def test_flow_time_is_the_integral(depth, u0, u1, x, y):
    w0, w1 = (u * (y / x) ** (1 / depth) for u in (u0, u1))
    time = float(escape.gradient_flow_time(depth, w0=w0, w1=w1, x=x, y=y))
    near(time, quadrature(depth, w0, w1, x, y), 2e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize(("u0", "u1"), [(0.9, 0.97), (1.2, 1.02)])
@pytest.mark.parametrize(("x", "y"), [(1.0, 1.0), (0.7, 1.9)])
def test_the_flow_arrives_in_time(depth, u0, u1, x, y):
    w0, w1 = (u * (y / x) ** (1 / depth) for u in (u0, u1))
    time = float(escape.gradient_flow_time(depth, w0=w0, w1=w1, x=x, y=y))
    near(flowed(depth, w0, time, x, y), w1, 1e-8)


def test_flow_time_of_two_layers_is_a_logarithm():
    # w' = w - w^3, so w / sqrt(1 - w^2) grows as e^t
    w0, w1 = np.array([0.01, 0.4, 0.9]), np.array([0.5, 0.99, 0.999])
    exact = np.log(w1 / w0) - 0.5 * np.log((1 - w1**2) / (1 - w0**2))
    np.testing.assert_allclose(escape.gradient_flow_time(2, w0=w0, w1=w1), exact, rtol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize("u0", [0.1, 0.5, 0.9, 1.3])
def test_tiny_intervals_take_tiny_times(depth, u0):
    w1 = u0 + (1 - u0) * 1e-6
    exact = float(quadrature(depth, u0, w1, 1.0, 1.0))
    # the difference of two antiderivatives leaves an absolute error, a few 1e-15
    assert escape.gradient_flow_time(depth, w0=u0, w1=w1) == pytest.approx(exact, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("relative", [1e-3, 1e-9, 1e-14])
def test_tiny_intervals_on_the_plateau_are_exact(relative):
    w1 = 0.5 * (1 + relative)
    exact = float(quadrature(64, 0.5, w1, 1.0, 1.0))
    near(escape.gradient_flow_time(64, w0=0.5, w1=w1), exact, 1e-13)


@modest
@given(depths, st.lists(st.floats(0.05, 0.999), min_size=3, max_size=3), st.floats(0.2, 5), st.floats(0.2, 5))
def test_flow_times_add_up(depth, u, x, y):
    for branch in (np.sort(u), np.sort(1 / np.array(u))[::-1]):
        a, b, c = branch * (y / x) ** (1 / depth)
        parts = [escape.gradient_flow_time(depth, w0=p, w1=q, x=x, y=y) for p, q in ((a, c), (a, b), (b, c))]
        assert all(part >= -1e-13 for part in parts)
        assert parts[0] == pytest.approx(parts[1] + parts[2], rel=1e-11, abs=1e-12)


@modest
@given(st.integers(3, 64), st.floats(0.05, 0.99), st.floats(0.05, 0.99), st.floats(0.2, 5), st.floats(0.2, 5))
def test_the_papers_bound_holds_and_is_sharp_on_the_plateau(depth, a, b, x, y):
    def both(w0, w1):
        bound = (w0 ** (2 - depth) - w1 ** (2 - depth)) / ((depth - 2) * x * y)
        return escape.gradient_flow_time(depth, w0=w0, w1=w1, x=x, y=y), bound

    w0, w1 = (u * (y / x) ** (1 / depth) for u in sorted((a, b)))
    time, bound = both(w0, w1)
    assert time >= bound * (1 - 1e-9)
    u = 1e-3 ** (1 / depth)  # the pull of the target is u^L = 1/1000 of the gradient, and less before
    time, bound = both(0.5 * u * w0, u * w0)
    assert bound * (1 - 1e-9) <= time <= bound * 1.0011


@modest
@given(depths, st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.3, 3), st.floats(0.3, 3))
def test_scaling_laws(depth, a, b, c, s):
    w0, w1 = sorted((a, b))
    time = float(escape.gradient_flow_time(depth, w0=w0, w1=w1))
    of_data = escape.gradient_flow_time(depth, w0=w0, w1=w1, x=s, y=s)
    assert of_data == pytest.approx(time / s**2, rel=1e-10, abs=1e-12)
    of_weights = escape.gradient_flow_time(depth, w0=c * w0, w1=c * w1, y=c**depth)
    assert of_weights == pytest.approx(time * c ** (2 - 2 * depth), rel=1e-10, abs=1e-12 * c ** (2 - 2 * depth))


def test_flow_time_at_the_ends():
    depth = np.array([1, 2, 3, 10, 64])
    np.testing.assert_array_equal(escape.gradient_flow_time(depth, w0=0.5, w1=1.0), np.inf)
    np.testing.assert_array_equal(escape.gradient_flow_time(depth, w0=2.0, w1=1.0), np.inf)
    for w in (0.5, 1.0, 2.0, 1e-200):
        np.testing.assert_array_equal(escape.gradient_flow_time(depth, w0=w, w1=w), 0.0)
    target = (1.9 / 0.7) ** (1 / depth)
    np.testing.assert_array_equal(escape.gradient_flow_time(depth, w0=0.5, w1=target, x=0.7, y=1.9), np.inf)
    assert escape.gradient_flow_time(2000, w0=0.1, w1=0.5) == np.inf  # 10^1998


@pytest.mark.parametrize("depth", [6, 10, 12, 30, 40])
def test_flow_time_from_above_close_to_the_target(depth):
    w0, w1 = 1.0001, 1.00001
    time = float(escape.gradient_flow_time(depth, w0=w0, w1=w1))
    near(time, quadrature(depth, w0, w1, 1.0, 1.0), 1e-9)


@pytest.mark.parametrize(("w0", "w1"), [(0.5, 1 - 1e-14), (2.0, 1 + 1e-14)])
def test_flow_time_next_to_the_target_is_finite(w0, w1):
    exact = np.log(w1 / w0) - 0.5 * np.log((1 - w1) * (1 + w1) / (1 - w0**2))
    near(escape.gradient_flow_time(2, w0=w0, w1=w1), exact, 1e-9)


def test_no_way_takes_no_time_next_to_the_target_too():
    w = np.nextafter(1.0, 0.0)
    assert escape.gradient_flow_time(3, w0=w, w1=w) == 0


def test_flow_time_broadcasts():
    depth, w0, y = np.array([[1], [4], [9]]), np.array([0.2, 0.5, 0.8, 1.5]), np.array([[[1.0]], [[1.2]]])
    w1 = (w0 + y ** (1 / depth)) / 2
    together = escape.gradient_flow_time(depth, w0=w0, w1=w1, y=y)
    assert together.shape == (2, 3, 4)
    for i, j, k in np.ndindex(2, 3, 4):
        alone = escape.gradient_flow_time(depth[j, 0], w0=w0[k], w1=w1[i, j, k], y=y[i, 0, 0])
        near(together[i, j, k], float(alone), 1e-14)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"depth": 0}, "A depth is a whole number, at least 1"),
        ({"depth": 2.5}, "A depth is a whole number, at least 1"),
        ({"w0": 0.0}, "must be positive numbers"),
        ({"w0": [0.5, -0.5]}, "must be positive numbers"),
        ({"w1": np.inf}, "must be positive numbers"),
        ({"w1": np.nan}, "must be positive numbers"),
        ({"x": 0.0}, "must be positive numbers"),
        ({"y": -1.0}, "must be positive numbers"),
        ({"w1": 0.4}, "w1 must lie between the two"),
        ({"w1": 1.1}, "w1 must lie between the two"),
        ({"w0": 2.0}, "w1 must lie between the two"),
        ({"w0": 2.0, "w1": 3.0}, "w1 must lie between the two"),
        ({"y": 0.01}, "w1 must lie between the two"),
    ],
)
def test_a_flow_that_never_gets_there_raises(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        escape.gradient_flow_time(**({"depth": 3, "w0": 0.5, "w1": 0.8} | arguments))


# ---- the RMSprop flow


def riccati_time(depth, w0, w1, alpha, ratio0):
    """The integral of r dw along the Riccati equation in w."""

    def slope(w, state):
        return [alpha / 2 * (1 - state[0] ** 2) - (depth - 1) / w * state[0], state[0]]

    return integrated(slope, w1, [ratio0, 0.0], begin=w0)[1]


def rmsprop_flowed(depth, w0, time, alpha, ratio0):
    """The weight after that time, by an ODE solver for w and v."""

    def flow(t, state):
        w, v = state
        g = w ** (depth - 1)
        return [g / np.sqrt(v), alpha * (g**2 - v)]

    return integrated(flow, time, [w0, (ratio0 * w0 ** (depth - 1)) ** 2])[0]


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize(("w0", "w1"), [(0.1, 0.3), (0.6, 1.0)])
@pytest.mark.parametrize("alpha", [0.5, 10.5])
@pytest.mark.parametrize("ratio0", [0.0, 0.3, 1.0, 5.0])
def test_rmsprop_time_against_ode_solvers(depth, w0, w1, alpha, ratio0):
    time = float(escape.rmsprop_flow_time(depth, w0=w0, w1=w1, alpha=alpha, ratio0=ratio0))
    near(time, riccati_time(depth, w0, w1, alpha, ratio0), 1e-8)
    if ratio0 > 0:
        near(rmsprop_flowed(depth, w0, time, alpha, ratio0), w1, 1e-7)


@pytest.mark.parametrize("ratio0", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("w0", "w1"), [(0.1, 0.2), (0.5, 1.0), (0.999, 1.0)])
def test_rmsprop_time_of_a_thousand_layers(w0, w1, ratio0):
    # r is small soon, and r' = alpha/2 - (L - 1) r / w without its square is linear
    depth, alpha = 1000, 10.0
    excess = (ratio0 - alpha * w0 / (2 * depth)) * w0 * (1 - (w0 / w1) ** (depth - 2)) / (depth - 2)
    asymptotic = alpha * (w1**2 - w0**2) / (4 * depth) + excess
    time = float(escape.rmsprop_flow_time(depth, w0=w0, w1=w1, alpha=alpha, ratio0=ratio0))
    near(time, asymptotic, 2e-4 * (1 + 20 * ratio0))
    near(time, riccati_time(depth, w0, w1, alpha, ratio0), 1e-8)


def test_rmsprop_time_where_the_speed_is_one():
    # one layer with sqrt(v) = |g| at the start, and a memory that forgets at once, are sign descent
    for alpha in (0.01, 1.0, 100.0):
        near(escape.rmsprop_flow_time(1, w0=0.2, w1=0.9, alpha=alpha, ratio0=1.0), 0.7, 1e-14)
    near(escape.rmsprop_flow_time(10, w0=0.2, w1=0.9, alpha=1e7, ratio0=0.0), 0.7, 1e-5)


@modest
@given(
    st.lists(st.integers(1, 300), min_size=2, max_size=2, unique=True),
    st.lists(st.floats(0.1, 1.0), min_size=2, max_size=2, unique=True),
    st.floats(0.1, 30),
    st.floats(0, 3),
)
def test_depth_helps_rmsprop(pair, w, alpha, ratio0):
    deep, shallow = escape.rmsprop_flow_time(sorted(pair)[::-1], w0=min(w), w1=max(w), alpha=alpha, ratio0=ratio0)
    assert 0 < deep < shallow


@pytest.mark.parametrize("depth", [1, 10, 1000])
def test_rmsprop_time_of_a_tiny_way_is_exact(depth):
    w0, ratio0 = 0.5, 0.7
    w1 = w0 * (1 + 2.0**-40)
    time = escape.rmsprop_flow_time(depth, w0=w0, w1=w1, alpha=2.0, ratio0=ratio0)
    near(time, ratio0 * (w1 - w0), 1e-8)


def test_rmsprop_time_of_no_way_is_zero_and_broadcasts():
    assert abs(escape.rmsprop_flow_time(10, w0=0.5, w1=0.5, alpha=1.0, ratio0=0.3)) < 1e-40
    depth, alpha = np.array([[1], [8]]), np.array([0.5, 2.0, 9.0])
    together = escape.rmsprop_flow_time(depth, w0=0.5, w1=0.9, alpha=alpha, ratio0=0.1)
    assert together.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert together[i, j] == escape.rmsprop_flow_time(depth[i, 0], w0=0.5, w1=0.9, alpha=alpha[j], ratio0=0.1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"depth": 0}, "A depth is a whole number, at least 1"),
        ({"depth": 1.5}, "A depth is a whole number, at least 1"),
        ({"w0": 0.0}, "needs 0 < w0 <= w1"),
        ({"w0": 0.9}, "needs 0 < w0 <= w1"),
        ({"w1": np.inf}, "needs 0 < w0 <= w1"),
        ({"w1": np.nan}, "needs 0 < w0 <= w1"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": [1.0, -1.0]}, "alpha must be positive"),
        ({"ratio0": -0.1}, "ratio0 at least 0"),
        ({"ratio0": np.nan}, "ratio0 at least 0"),
    ],
)
def test_an_impossible_rmsprop_flow_raises(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        escape.rmsprop_flow_time(**({"depth": 3, "w0": 0.5, "w1": 0.8, "alpha": 1.0, "ratio0": 0.0} | arguments))


# ---- rules and paths


X, Y = np.array([1.0, -0.5, 2.0]), np.array([1.2, -0.3, 1.5])
RULES = {  # vclib's rule, step size, torch's optimiser, maximum norm
    "gradient descent": (escape.gradient_descent(), 0.1, torch.optim.SGD, {}, None),
    "momentum": (escape.momentum(beta=0.8), 0.02, torch.optim.SGD, {"momentum": 0.8}, None),
    "rmsprop": (escape.rmsprop(), 0.01, torch.optim.RMSprop, {"alpha": 0.9}, None),
    "rmsprop, other": (escape.rmsprop(beta2=0.8, eps=0.1), 0.01, torch.optim.RMSprop, {"alpha": 0.8, "eps": 0.1}, None),
    "adam": (escape.adam(), 0.01, torch.optim.Adam, {}, None),
    "adam, other": (escape.adam(beta1=0.5, eps=0.1), 0.01, torch.optim.Adam, {"betas": (0.5, 0.999), "eps": 0.1}, None),
    "clipped": (escape.clipped(max_norm=0.5), 0.1, torch.optim.SGD, {}, 0.5),
}


@pytest.mark.parametrize("depth", [4, 10])
@pytest.mark.parametrize("name", RULES)
def test_rules_follow_torch_step_by_step(name, depth):
    rule, step_size, optimiser, options, max_norm = RULES[name]
    starts = np.random.default_rng(depth).uniform(-1, 1, (4, depth))
    ours = escape.descend(starts, rule, step_size=step_size, iterations=60, x=X, y=Y, record=range(61))
    for run, start in enumerate(starts):
        w = torch.tensor(start, requires_grad=True)
        optim = optimiser([w], lr=step_size, **options)
        for k in range(61):
            np.testing.assert_allclose(ours.w[k, run], w.detach(), rtol=0, atol=1e-10)
            loss = 0.5 * torch.mean((torch.tensor(Y) - torch.prod(w) * torch.tensor(X)) ** 2)
            assert ours.loss[k, run] == pytest.approx(loss.item(), abs=1e-12)
            optim.zero_grad()
            loss.backward()
            if max_norm:
                torch.nn.utils.clip_grad_norm_([w], max_norm)
            optim.step()
            if name.startswith("rmsprop") and k < 60:
                np.testing.assert_allclose(ours.second_moment[k + 1, run], optim.state[w]["square_avg"], atol=1e-10)


@pytest.mark.parametrize(
    ("rule", "direction"),
    [(escape.sign_descent(), np.sign), (escape.normalized(), lambda g: g / np.linalg.norm(g))],
    ids=["sign", "normalized"],
)
def test_rules_without_memory_are_three_lines_of_numpy(rule, direction):
    w = np.random.default_rng(0).uniform(-1, 1, 10)
    ours = escape.descend(w, rule, step_size=0.01, iterations=60, x=X, y=Y, record=range(61))
    for k in range(61):
        np.testing.assert_allclose(ours.w[k], w, atol=1e-12)
        w = w - 0.01 * direction(chain.gradient(w, x=X, y=Y))


def test_defaults_are_those_of_the_docstrings():
    w = np.linspace(0.4, 0.8, 5)

    def end(rule, **options):
        return escape.descend(w, rule, step_size=0.01, iterations=20, record=[20], **options).w

    for default, explicit in (
        (escape.momentum(), escape.momentum(beta=0.9)),
        (escape.rmsprop(), escape.rmsprop(beta2=0.9, eps=1e-8)),
        (escape.adam(), escape.adam(beta1=0.9, beta2=0.999, eps=1e-8)),
        (escape.clipped(), escape.clipped(max_norm=1.0)),
    ):
        np.testing.assert_array_equal(end(default), end(explicit))
    np.testing.assert_array_equal(end(escape.adam()), end(escape.adam(), x=1.0, y=1.0, threshold=0.25))


@pytest.mark.parametrize("name", [*RULES, "sign", "normalized"])
def test_runs_at_once_are_runs_one_by_one(name):
    rule = {"sign": escape.sign_descent(), "normalized": escape.normalized()}.get(name) or RULES[name][0]
    w = np.random.default_rng(1).uniform(-1, 1, (5, 9))
    steps, options = np.array([0.02, 0.05, 0.1]), {"iterations": 40, "x": X, "y": Y, "record": [0, 1, 17, 40]}
    together = escape.descend(w, rule, step_size=steps.reshape(3, 1, 1), noise=np.zeros((2, 1)), **options)
    assert together.time.shape == together.diverged.shape == (3, 2, 5)
    assert together.loss.shape == (4, 3, 2, 5)
    assert together.w.shape == together.second_moment.shape == (4, 3, 2, 5, 9)
    for a, b, s in np.ndindex(3, 2, 5):
        alone = escape.descend(w[s], rule, step_size=steps[a], **options)
        assert together.time[a, b, s] == alone.time
        assert together.diverged[a, b, s] == alone.diverged
        np.testing.assert_array_equal(together.iterations, alone.iterations)
        np.testing.assert_allclose(together.w[:, a, b, s], alone.w, rtol=1e-10)
        np.testing.assert_allclose(together.loss[:, a, b, s], alone.loss, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(together.second_moment[:, a, b, s], alone.second_moment, rtol=1e-10)


@pytest.mark.parametrize("place", escape.NOISE_IN)
@pytest.mark.parametrize("decay", [False, True])
def test_noise_enters_where_it_should(place, decay):
    w = np.random.default_rng(2).uniform(-1, 1, (4, 6))
    steps, noise = np.array([0.01, 0.04]).reshape(2, 1, 1), np.array([0.0, 0.1, 0.3]).reshape(3, 1)
    schedule = (lambda k: 1 / k) if decay else (lambda k: 1.0)
    ours = escape.descend(
        w,
        escape.rmsprop(beta2=0.8, eps=1e-3),
        step_size=steps,
        iterations=12,
        noise=noise,
        noise_in=place,
        rng=np.random.default_rng(7),
        schedule=schedule,
        record=range(13),
    )
    rng, deviation = np.random.default_rng(7), noise[..., None]
    w, v = np.broadcast_to(w, (2, 3, 4, 6)), 0.0
    for k in range(13):
        np.testing.assert_allclose(ours.w[k], w, rtol=1e-10, atol=1e-12)
        step = steps[..., None] * (1 / (k + 1) if decay else 1)
        draw = deviation * np.moveaxis(rng.standard_normal((6, 2, 3, 4)), 0, -1)
        g = chain.gradient(w, x=1.0, y=1.0) + draw * (place == "gradient")
        v = 0.8 * v + 0.2 * g**2
        direction = g / (np.sqrt(v) + 1e-3) + draw * (place == "update")
        w = w - step * direction + np.sqrt(step) * draw * (place == "weights")


def test_noise_has_the_deviation_that_was_asked_for():
    options = {"step_size": 0.04, "noise": 0.5, "iterations": 1, "record": [1], "x": 0.0}  # without a gradient
    for place, deviation in (("gradient", 0.02), ("update", 0.02), ("weights", 0.1)):
        rng = np.random.default_rng(3)
        paths = escape.descend(np.ones((5000, 4)), escape.gradient_descent(), rng=rng, noise_in=place, **options)
        assert paths.w.mean() == pytest.approx(1, abs=4 * deviation / 20_000**0.5)
        near(paths.w.std(), deviation, 4 / 40_000**0.5)


def test_a_schedule_multiplies_the_step():
    seen = []

    def schedule(k):
        seen.append(k)
        return 1 / k**0.5

    w = np.array([0.9, -0.6, 1.2])
    ours = escape.descend(w, escape.sign_descent(), step_size=0.1, iterations=5, schedule=schedule, record=range(6))
    assert seen == [1, 2, 3, 4, 5]
    for k in range(1, 6):
        w = w - 0.1 / k**0.5 * np.sign(chain.gradient(w, x=1.0, y=1.0))
        np.testing.assert_allclose(ours.w[k], w, atol=1e-14)


def counting_rule():
    """Gradient descent that notes its arguments."""
    seen = []

    def rule(gradient, memory, k):
        seen.append((gradient.shape, memory.setdefault("first", k), k))
        return gradient

    return rule, seen


def test_a_rule_is_any_function():
    rule, seen = counting_rule()
    ours = escape.descend(np.full((2, 3, 4), 0.3), rule, step_size=0.1, iterations=6, record=[6])
    assert seen == [((4, 2, 3), 1, k) for k in range(1, 7)]
    theirs = escape.descend(np.full((2, 3, 4), 0.3), escape.gradient_descent(), step_size=0.1, iterations=6, record=[6])
    np.testing.assert_array_equal(ours.w, theirs.w)
    assert np.all(np.isnan(ours.second_moment))

    def decayed(gradient, memory, k):
        memory["v"] = gradient**2
        return gradient / k

    ours = escape.descend([0.5, 0.8], decayed, step_size=0.1, iterations=2, record=[0, 1, 2])
    first = ours.w[0] - 0.1 * chain.gradient(ours.w[0], x=1.0, y=1.0)
    second = first - 0.05 * chain.gradient(first, x=1.0, y=1.0)
    np.testing.assert_allclose(ours.w[1:], [first, second], rtol=1e-14)
    assert np.all(np.isnan(ours.second_moment[0]))
    np.testing.assert_allclose(ours.second_moment[2], chain.gradient(first, x=1.0, y=1.0) ** 2, rtol=1e-13)


def test_the_record_holds_what_was_asked_for():
    w = np.random.default_rng(4).uniform(-1, 1, (3, 5))
    options = {"step_size": 0.1, "iterations": 9, "x": X, "y": Y}
    full = escape.descend(w, escape.gradient_descent(), record=range(10), **options)
    np.testing.assert_array_equal(full.iterations, range(10))
    np.testing.assert_array_equal(full.w[0], w)
    np.testing.assert_allclose(full.loss, chain.loss(full.w, x=X, y=Y), rtol=1e-12)
    some = escape.descend(w, escape.gradient_descent(), record=np.array([7, 0, 3]), **options)
    np.testing.assert_array_equal(some.iterations, [0, 3, 7])
    np.testing.assert_array_equal(some.w, full.w[[0, 3, 7]])
    np.testing.assert_array_equal(some.loss, full.loss[[0, 3, 7]])
    assert escape.descend(w, escape.gradient_descent(), **options).w.size == 0
    start = escape.descend(w, escape.gradient_descent(), record=[0], **(options | {"iterations": 0}))
    np.testing.assert_array_equal(start.w, w[None])


def test_a_run_ends_when_every_chain_has_escaped():
    def steps_taken(**options):
        rule, seen = counting_rule()
        paths = escape.descend([[0.9, 0.9], [0.5, 0.5]], rule, step_size=0.02, **({"iterations": 50} | options))
        return len(seen), paths

    taken, paths = steps_taken()
    assert paths.time[0] == 0 < paths.time[1] == taken < 50
    assert steps_taken(iterations=3)[0] == 3
    assert np.isinf(steps_taken(iterations=3)[1].time[1])
    assert steps_taken(record=[taken + 4])[0] == taken + 4
    assert steps_taken(record=[1])[0] == taken
    assert steps_taken(threshold=0.0)[0] == 50
    assert steps_taken(threshold=0.5 * 0.75**2)[1].time[1] == 1  # the loss at the start is not below itself
    assert steps_taken(threshold=10.0)[0] == 0


def test_time_is_the_first_crossing():
    w = np.random.default_rng(5).uniform(0.5, 1, (40, 4))
    w[0] = 1
    paths = escape.descend(
        w,
        escape.sign_descent(),
        step_size=0.05,
        noise=1.0,
        noise_in="update",
        rng=np.random.default_rng(6),
        iterations=15,
        record=range(16),
        threshold=0.05,
    )
    below = paths.loss < 0.05
    np.testing.assert_array_equal(paths.time, np.where(below.any(axis=0), below.argmax(axis=0), np.inf))
    returned = [np.any(~below[int(k) :, run]) for run, k in enumerate(paths.time) if np.isfinite(k)]
    assert 0 < sum(returned) < len(returned)  # most stay below; some come back above the threshold
    assert paths.time[0] == 0


def test_a_diverged_run_is_marked_and_ends():
    rule, seen = counting_rule()
    paths = escape.descend([[0.5, 0.5], [3.0, 3.0]], rule, step_size=0.5, iterations=200)
    np.testing.assert_array_equal(paths.diverged, [False, True])
    np.testing.assert_array_equal(np.isfinite(paths.time), [True, False])
    assert len(seen) < 50
    assert not escape.descend([3.0, 3.0], rule, step_size=1e-3, iterations=5).diverged
    assert escape.descend([np.nan, 1.0], rule, step_size=0.1, iterations=5).diverged
    late = escape.descend([[0.9, 0.9]], rule, step_size=30.0, iterations=20, record=[20])
    assert late.time == 0
    assert late.diverged
    assert escape.descend([1e90, 1e90], rule, step_size=0.1, iterations=0).diverged  # the loss is infinite, not NaN


RULES_WITHOUT_EPS = {
    "rmsprop": escape.rmsprop(eps=0.0),
    "adam": escape.adam(eps=0.0),
    "normalized": escape.normalized(),
    "sign": escape.sign_descent(),
}


@pytest.mark.parametrize("name", RULES_WITHOUT_EPS)
def test_a_gradient_that_underflows_moves_nothing(name):
    w = np.array([[1e-200] * 4, [0.0, 0.0, 0.5, 0.5], [0.5] * 4])
    paths = escape.descend(w, RULES_WITHOUT_EPS[name], step_size=0.01, iterations=4, record=[4])
    np.testing.assert_array_equal(paths.w[0, :2], w[:2])
    assert np.all(np.isfinite(paths.w))
    assert np.all(paths.w[0, 2] > 0.5)


def test_one_tiny_gradient_beside_others_gives_no_nan():
    for rule in RULES_WITHOUT_EPS.values():
        paths = escape.descend([1e-170, 0.5, 1.0], rule, step_size=0.01, iterations=4, record=[4])
        assert np.all(np.isfinite(paths.w))


def test_descend_leaves_its_input_alone():
    for w in (np.full((2, 3), 0.5), np.full(3, 0.5), np.broadcast_to(0.5, (2, 3))):
        before = w.copy()
        for place in escape.NOISE_IN:
            rng = np.random.default_rng(0)
            options = {"noise": 0.1, "noise_in": place, "rng": rng, "iterations": 5, "record": [0, 5]}
            paths = escape.descend(w, escape.rmsprop(), step_size=0.1, **options)
            np.testing.assert_array_equal(w, before)
            np.testing.assert_array_equal(paths.w[0], before)
            assert not np.shares_memory(paths.w, w)


def test_whole_numbers_and_one_layer_are_fine():
    paths = escape.descend([3], escape.gradient_descent(), step_size=1, iterations=2, x=0.5, y=1.0, record=[0, 1, 2])
    np.testing.assert_allclose(paths.w[:, 0], [3.0, 2.75, 2.5625])  # w' = w - (w / 4 - 1 / 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"noise_in": "loss"}, "gradient, update, weights, not in 'loss'"),
        ({"rule": "rmsprop"}, r"A rule is a function such as escape.rmsprop\(\), with its brackets, not 'rmsprop'"),
        ({"rule": escape.rmsprop}, "with its brackets"),
        (
            {"w": np.full((2, 4), 0.5), "rule": lambda gradient, memory, k: None},
            "must return an array of the gradient's shape",
        ),
        ({"w": []}, "at least one weight"),
        ({"w": 0.5}, "at least one weight"),
        ({"iterations": -1}, "iterations is a whole number"),
        ({"iterations": 2.5}, "iterations is a whole number"),
        ({"record": [2, 10]}, "record lists iterations"),
        ({"record": [-1]}, "record lists iterations"),
        ({"noise": 0.1, "rng": 0}, "needs a generator"),
        ({"rule": None}, "A rule is a function"),
        ({"step_size": -0.1}, "Step sizes must be positive"),
        ({"step_size": 0.0}, "Step sizes must be positive"),
        ({"step_size": [0.1, np.nan]}, "Step sizes must be positive"),
        ({"noise": -0.1}, "noise at least 0"),
        ({"noise": np.nan}, "noise at least 0"),
        ({"noise": 0.1}, r"pass rng=np.random.default_rng\(seed\)"),
        ({"noise": [0.0, 0.1]}, r"pass rng=np.random.default_rng\(seed\)"),
        ({"step_size": [0.1, 0.2, 0.3]}, "shape"),
        ({"x": [1.0, 2.0]}, "x and y are scalars or vectors of one length"),
    ],
)
def test_bad_input_raises_a_helpful_sentence(options, sentence):
    arguments = {"w": np.ones((2, 4)), "rule": escape.gradient_descent(), "step_size": 0.1, "iterations": 3}
    with pytest.raises(ValueError, match=sentence):
        escape.descend(**(arguments | options))


# ---- the benchmark


def test_the_benchmark_compares_like_with_like():
    path = Path(__file__).parents[1] / "benchmarks" / "chain_paths.py"
    spec = importlib.util.spec_from_file_location("chain_paths", path)
    chain_paths = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chain_paths)
    for optimiser in chain_paths.OPTIMISERS:
        for noise in (0.0, 0.05):
            times = chain_paths.compare(optimiser, runs=2, iterations=20, noise=noise, tau=1.0)
            assert times.shape == (2,)


@pytest.mark.parametrize("rule", [escape.momentum, escape.rmsprop, escape.adam])
@pytest.mark.parametrize("share", [-0.1, 1.0, np.nan])
def test_an_average_needs_a_share_below_one(rule, share):
    name = "beta" if rule is escape.momentum else "beta2"
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1"):
        rule(**{name: share})


def test_losses_are_never_negative():
    near = (0.9 / 1.3) * (1 + np.linspace(-1e-9, 1e-9, 101))[:, None]
    paths = escape.descend(near, escape.gradient_descent(), step_size=0.1, x=1.3, y=0.9, iterations=0, record=[0])
    assert np.all(paths.loss >= 0)
    np.testing.assert_allclose(paths.loss[0], chain.loss(near, x=1.3, y=0.9), atol=1e-24)
