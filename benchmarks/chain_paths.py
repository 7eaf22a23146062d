"""How much faster is vclib.escape.descend than a plain loop over torch.optim? Run `python benchmarks/chain_paths.py`.

Both run the same chains: depth 10, weights from U[-0.2, 0.2], one data point x = y = 1, RMSprop (step 0.01,
beta2 = 0.9, eps = 1e-8) and gradient descent (step 0.1), with and without noise of deviation 0.05 in the gradient.
The noise is drawn beforehand and fed to both. Before anything is timed, weights and escape times must agree, also from
U[-1, 1], where chains escape.

How to read the table: "us" are microseconds per run and iteration, the median of the repetitions, in which loop and
`descend` take turns. "ratio" is the loop's time over that of `descend`. The loop runs one chain after another, so
its time per run does not depend on their number; `descend` gains with every run that it gets at once. One thread.

`--study` times the whole study of chapter 8 instead: 3 step sizes x 3 noise levels x 1,000 seeds in three places.
"""

import argparse
from time import perf_counter

import numpy as np
import torch

from vclib import escape

DEPTH = 10
OPTIMISERS = {  # name: step size, vclib's rule, torch's optimiser
    "RMSprop": (0.01, escape.rmsprop, lambda w: torch.optim.RMSprop([w], lr=0.01, alpha=0.9, eps=1e-8)),
    "GD": (0.1, escape.gradient_descent, lambda w: torch.optim.SGD([w], lr=0.1)),
}


class Replay:
    """A generator whose normal numbers were drawn beforehand: (iterations, DEPTH, runs)."""

    def __init__(self, draws):
        self.rest = iter(draws)

    def standard_normal(self, shape):
        draw = next(self.rest)
        assert draw.shape == shape
        return draw


def chains(runs, iterations, *, tau, seed=0):
    """Starting weights (runs, DEPTH) and noise (iterations, DEPTH, runs)."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-tau, tau, (runs, DEPTH)), rng.standard_normal((iterations, DEPTH, runs))


def with_torch(starts, draws, optimiser, *, noise, paths=None):
    """The plain loop, chain by chain. Returns the escape times, and appends the weights to ``paths``."""
    make, times = OPTIMISERS[optimiser][2], np.full(len(starts), np.inf)
    draws = torch.from_numpy(np.moveaxis(draws, 2, 0).copy())
    for run, start in enumerate(starts):
        w = torch.tensor(start, requires_grad=True)
        optim = make(w)
        for k in range(len(draws[run]) + 1):
            optim.zero_grad()
            loss = 0.5 * (1 - w.prod()) ** 2
            if loss.item() < 0.25 and times[run] == np.inf:
                times[run] = k
            if paths is not None:
                paths.append(w.detach().numpy().copy())
            if k == len(draws[run]):
                break
            loss.backward()
            if noise:
                w.grad += noise * draws[run, k]
            optim.step()
    return times


def with_vclib(starts, draws, optimiser, *, noise, record=None):
    """All chains at once; without ``record``, only the end is kept, which also rules out an early stop."""
    step_size, rule, _ = OPTIMISERS[optimiser]
    iterations = len(draws)
    return escape.descend(
        starts,
        rule(),
        step_size=step_size,
        iterations=iterations,
        noise=noise,
        rng=Replay(draws),
        record=[iterations] if record is None else record,
    )


def compare(optimiser, *, runs, iterations, noise, tau):
    """Assert that both give the same weights to 1e-10 and the same escape times, and return those."""
    starts, draws = chains(runs, iterations, tau=tau)
    paths = []
    times = with_torch(starts, draws, optimiser, noise=noise, paths=paths)
    ours = with_vclib(starts, draws, optimiser, noise=noise, record=range(iterations + 1))
    np.testing.assert_array_equal(ours.time, times)
    theirs = np.reshape(paths, (runs, iterations + 1, DEPTH)).swapaxes(0, 1)
    k = np.arange(iterations + 1)[:, None]
    # RMSprop only up to the escape: once gradients are at rounding level, it divides rounding errors by their own
    # size, so with a constant step the paths are chaotic, and any two correct programs part.
    same = (k <= times) | (optimiser != "RMSprop")
    np.testing.assert_allclose(ours.w[same], theirs[same], rtol=0, atol=1e-10)
    return times


def seconds(function, *arguments, **options):
    start = perf_counter()
    function(*arguments, **options)
    return perf_counter() - start


def side_by_side(loop_runs, runs, iterations, repetitions):
    print(f"{'optimiser':9} {'noise':>5}   {'loop us':>8} {'runs':>5}   {'descend us':>10} {'runs':>5}   {'ratio':>7}")
    for optimiser in OPTIMISERS:
        for noise in (0.0, 0.05):
            inputs = {n: chains(n, iterations, tau=0.2) for n in (loop_runs, *runs)}
            loop, ours = [], {n: [] for n in runs}
            for _ in range(repetitions):
                loop.append(seconds(with_torch, *inputs[loop_runs], optimiser, noise=noise))
                for n in runs:
                    ours[n].append(seconds(with_vclib, *inputs[n], optimiser, noise=noise))
            theirs = np.median(loop) / (loop_runs * iterations)
            for n in runs:
                mine = np.median(ours[n]) / (n * iterations)
                print(
                    f"{optimiser:9} {noise:5.2f}   {1e6 * theirs:8.2f} {loop_runs:5d}   "
                    f"{1e6 * mine:10.4f} {n:5d}   {theirs / mine:7.0f}"
                )


def study(seeds=1000):
    """The study of chapter 8: every method, noise level and step size of its tables, noise in each of three places."""
    rng = np.random.default_rng(0)
    w, total = rng.uniform(-0.2, 0.2, (seeds, DEPTH)), 0.0
    for noise_in in escape.NOISE_IN:
        for optimiser, steps in {"GD": [0.01, 0.03, 0.1], "RMSprop": [0.003, 0.01, 0.03]}.items():
            iterations = 3000 if (optimiser, noise_in) == ("GD", "weights") else 1000
            settings = {"step_size": np.reshape(steps, (3, 1, 1)), "noise": np.reshape([0.05, 0.1, 0.5], (3, 1))}
            settings |= {"noise_in": noise_in, "rng": rng, "iterations": iterations, "record": [iterations]}
            taken = seconds(escape.descend, w, OPTIMISERS[optimiser][1](), **settings)
            total += taken
            print(f"{optimiser:8} noise in {noise_in:9} 9 x {seeds} runs x {iterations} iterations: {taken:5.1f} s")
    print(f"together {total:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help="time the whole study")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--loop-runs", type=int, default=8, help="chains of the plain loop")
    parser.add_argument("--runs", type=int, nargs="+", default=[8, 1000, 9000], help="chains of descend")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.study:
        return study()
    for optimiser in OPTIMISERS:
        for tau, noise, iterations in ((0.2, 0.0, 100), (0.2, 0.05, 100), (1.0, 0.0, 1000), (1.0, 0.05, 1000)):
            times = compare(optimiser, runs=args.loop_runs, iterations=iterations, noise=noise, tau=tau)
            escaped = f"{np.isfinite(times).sum()} of {len(times)} chains escape within {iterations} iterations"
            print(f"agreed: {optimiser}, U[-{tau}, {tau}], noise {noise}; {escaped}")
    side_by_side(args.loop_runs, args.runs, args.iterations, args.repetitions)


if __name__ == "__main__":
    main()
