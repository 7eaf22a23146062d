"""How much faster is vclib.normlaw than multiplying matrices? Run `python benchmarks/norm_law.py`.

Gaussian weights: `sample`, which draws L chi-squares per network, against `simulate`, which draws and multiplies L
matrices, batch by batch. Uniform weights: `simulate` against the plain loop, one numpy matrix product per layer and
network. Depth 100, inputs (1, ..., 1), the variance 1 / width. Before anything is timed, both must have the same law:
"p" is the p-value of the two-sample Kolmogorov-Smirnov test, and must exceed 1e-3.

How to read the table: "us" are microseconds per network, the median of the repetitions, in which both take turns.
"ratio" is the slower program's time over that of the faster one; "from" and "to" are its range over the repetitions.
One thread.

`--stream` also runs 100,000 and 1,000,000 uniform networks of width 10, and prints their time and memory. "peak" is
that of Python's allocations, numpy's included. Memory is traced in a run of its own, which costs a little time.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy is imported

import argparse
import tracemalloc
from time import perf_counter

import numpy as np
from scipy import stats

from vclib import normlaw

DEPTH = 100


def with_chi_squares(width, size, rng):
    return normlaw.sample(width, DEPTH, sigma2=1 / width, log=True, size=size, rng=rng)


def streamed(draw, width, size):
    """The logarithms of squared norms, batch by batch; the matrices of no two layers are in memory at once."""
    law = {"width": width, "depth": DEPTH, "sigma2": 1 / width, "size": size}
    for batch in normlaw.simulate(draw, lambda n: np.ones((width, n)), **law):
        yield np.log(np.square(batch[-1]).sum(axis=0) / width)


def with_gaussian_matrices(width, size, rng):
    return np.concatenate(list(streamed(rng.standard_normal, width, size)))


def uniform(rng):
    return lambda shape: rng.uniform(-np.sqrt(3), np.sqrt(3), shape)


def with_uniform_matrices(width, size, rng):
    return np.concatenate(list(streamed(uniform(rng), width, size)))


def with_a_plain_loop(width, size, rng):
    """Uniform weights; one network after another."""
    tau, result = np.sqrt(3 / width), np.empty(size)
    for n in range(size):
        v = np.ones(width)
        for _ in range(DEPTH):
            v = rng.uniform(-tau, tau, (width, width)) @ v
        result[n] = np.log(v @ v / width)
    return result


def microseconds(function, width, size, rng):
    start = perf_counter()
    function(width, size, rng)
    return 1e6 * (perf_counter() - start) / size


def compare(name, width, slow, fast, *, sizes, agree, repetitions):
    rng = np.random.default_rng(width)
    p = stats.ks_2samp(slow(width, agree, rng), fast(width, agree, rng)).pvalue
    assert p > 1e-3, f"{name}, width {width}: the two laws differ, p = {p:.1e}"
    turns = [
        [microseconds(f, width, n, rng) for f, n in zip((slow, fast), sizes, strict=True)] for _ in range(repetitions)
    ]
    one, other = np.median(turns, axis=0)
    ratios = np.divide(*np.transpose(turns))
    print(
        f"{name:36} {width:5d}   {p:5.3f}   {one:9.1f} {other:9.2f}   "
        f"{one / other:7.1f} {ratios.min():7.1f} {ratios.max():7.1f}",
        flush=True,
    )


def stream(width=10):
    for size in (100_000, 1_000_000):
        start = perf_counter()
        below = sum(int((logs < 0).sum()) for logs in streamed(uniform(np.random.default_rng(0)), width, size))
        taken = perf_counter() - start
        print(
            f"stream, uniform, width {width}, {size:9,} networks: {taken:6.1f} s, {below / size:.4f} shrink", flush=True
        )
    for size in (100_000, 1_000_000):
        tracemalloc.start()
        count = sum(len(logs) for logs in streamed(uniform(np.random.default_rng(0)), width, size))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == size
        print(f"stream, uniform, width {width}, {size:9,} networks: peak {peak / 2**20:.3f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", action="store_true", help="also run a million networks of uniform weights")
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 10, 32, 100], help="of Gaussian networks")
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    titles = f"{'slow us':>9} {'fast us':>9}   {'ratio':>7} {'from':>7} {'to':>7}"
    print(f"{'slow / fast':36} {'width':>5}   {'p':>5}   {titles}")
    for width in args.widths:
        matrices = max(320_000 // width**2, 64)
        compare(
            "Gaussian: matrices / chi-squares",
            width,
            with_gaussian_matrices,
            with_chi_squares,
            sizes=(min(matrices, 20_000), 20_000),
            agree=min(max(3_200_000 // width**2, 1000), 20_000),
            repetitions=args.repetitions,
        )
    compare(
        "uniform: plain loop / simulate",
        10,
        with_a_plain_loop,
        with_uniform_matrices,
        sizes=(500, 5000),
        agree=4000,
        repetitions=args.repetitions,
    )
    if args.stream:
        stream()


if __name__ == "__main__":
    main()
