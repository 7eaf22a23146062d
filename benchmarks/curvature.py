"""How much faster is vclib.curvature than other programs for Hessians? Run `python benchmarks/curvature.py`.

The others are torch.func.hessian ("hessian"), the graph of the gradient differentiated once more for every vector
("twice"), PyHessian and curvlinops. The last two are no requirements of the book; without them, their columns say
"missing":

    pip install curvlinops-for-pytorch==3.0.1 pyhessian

All get the same ReLU networks of depth L and width d, with He's law; 100 Gaussian inputs with 784 entries, 10 targets;
float64; one thread. The others get what enters the first hidden matrix, and need not compute it with every product.
The tasks are

    blocks   the mean absolute entry of diagonal and of off-diagonal blocks: over the whole Hessian up to 4,096
             hidden weights, over the same 64 columns above;
    top      the eigenvalue of the largest magnitude, to 1e-6. Ours finds the largest and the smallest; PyHessian has
             the power method; all others use scipy's eigsh;
    density  stochastic Lanczos quadrature with 4 probes and 40 steps: nodes and weights. Only PyHessian draws other
             probes. Ours and PyHessian orthogonalise against all vectors before, which costs time; the others do not.

Before anything is timed, results must agree to 1e-8: the blocks, and the second and fourth moment of the densities.
Eigenvalues are compared with eigsh at its tightest tolerance: ours must be right to 1e-6, and to 1e-8 when asked for
1e-10. PyHessian's depends on its own rule for stopping, and is only marked when it is off.

How to read the table: for "vclib", milliseconds and MiB. For the others, their time over ours, and MiB. Times are
processor time, the median of the repetitions, in which the tools take turns. MiB is the peak of resident memory above
what there was before, in a process of its own (Linux only). For several seeds, ours is one call, the others are a loop.

    ~        the loop over seeds was stopped after half a minute, and its time scaled up
    !        the eigenvalue is off by more than 1e-6, and does not count; below the table it says by how much
    -        not tried: torch.func.hessian above 2,048 hidden weights (memory), PyHessian's columns (it has none)
    crashes  below the table it says how
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy is imported

import argparse
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from vclib import curvature
from vclib.initialization import he
from vclib.networks import MLP, mlp

PROBES, STEPS, PATIENCE = 4, 40, 30  # patience in seconds
LARGEST = 2048  # hidden weights for torch.func.hessian: for 1,152, it takes 1 GB, for 4,096 about 10


def generator():
    return torch.Generator().manual_seed(0)


def choose(net, seeds):
    return MLP(net.a[seeds], tuple(w[seeds] for w in net.hidden), net.b[seeds], net.activation)


def problem(depth, width, seeds):
    """Networks and data; the first networks that let a signal through, since eigsh fails on a Hessian of zeros."""
    sizes = {"depth": depth, "width": width, "inputs": 784, "outputs": 10, "seeds": 60}
    net = mlp(**sizes, law=he, activation="relu", generator=generator())
    data = torch.Generator().manual_seed(1)
    x, y = (torch.randn(100, n, generator=data, dtype=torch.float64) for n in (784, 10))
    alive = net(x).abs().amax(dim=(1, 2)).nonzero()[:seeds, 0]
    assert len(alive) == seeds
    return choose(net, alive), x, y


class Network(torch.nn.Module):
    """The part of a network above its first gate; only the hidden matrices are parameters."""

    def __init__(self, net):
        super().__init__()
        self.hidden = torch.nn.ParameterList(w[0].clone() for w in net.hidden)
        self.b = net.b[0]

    def forward(self, h):
        for w in self.hidden:
            h = torch.relu(h @ w.T)
        return h @ self.b.T


class Loss(torch.nn.Module):
    reduction = "mean"  # what curvlinops wants to know

    def forward(self, output, y):
        return 0.5 * (output - y).square().sum() / len(y)


# ---- the other tools, for one network: functions that multiply the Hessian by a matrix (N, m)


def hessian(net, h, y):
    def loss(hidden):
        out = h
        for w in hidden.unbind():
            out = torch.relu(out @ w.T)
        return Loss()(out @ net.b[0].T, y)

    weights = torch.cat(net.hidden)
    whole = torch.func.hessian(loss)(weights).view(weights.numel(), -1)
    return lambda vectors: whole @ vectors


def twice(net, h, y):
    network = Network(net)
    weights = list(network.hidden)
    gradient = torch.autograd.grad(Loss()(network(h), y), weights, create_graph=True)
    gradient = torch.cat([part.flatten() for part in gradient])

    def product(vector):
        return torch.cat([w.flatten() for w in torch.autograd.grad(gradient, weights, vector, retain_graph=True)])

    return lambda vectors: torch.stack([product(v) for v in vectors.T], dim=1)


def operator_of_curvlinops(net, h, y):
    from curvlinops import HessianLinearOperator

    network = Network(net)
    return HessianLinearOperator(network, Loss(), list(network.hidden), [(h, y)], check_deterministic=False)


def curvlinops(net, h, y):
    operator = operator_of_curvlinops(net, h, y)
    return lambda vectors: torch.cat([operator @ part for part in vectors.split(256, dim=1)], dim=1)


# ---- the tasks, for one network and such a function


def blocks(multiply, depth, width):
    """The mean |entry| of diagonal and of off-diagonal blocks, of the columns that `magnitudes` draws."""
    size, total = width**2, depth * width**2
    columns = torch.randperm(total, generator=generator())[: total if total <= curvature.EXACT else curvature.COLUMNS]
    every, units = torch.arange(len(columns)), torch.zeros(total, len(columns), dtype=torch.float64)
    units[columns, every] = 1
    means = multiply(units).abs().view(depth, size, -1).mean(dim=1)
    own = means[columns // size, every]
    return torch.stack([own.mean(), ((means.sum(dim=0) - own) / (depth - 1)).mean()])


def top(multiply, depth, width, tolerance=1e-6):
    def matvec(vector):
        return multiply(torch.from_numpy(vector.reshape(-1, 1))).numpy()

    total = depth * width**2
    start = np.random.default_rng(0).standard_normal(total)
    operator = LinearOperator((total, total), matvec=matvec, dtype=float)
    return torch.from_numpy(eigsh(operator, k=1, tol=tolerance, v0=start, return_eigenvectors=False))


def reference(multiply, depth, width):
    return top(multiply, depth, width, tolerance=0)


def moments(nodes, weights):
    """The second and the fourth moment of the densities (..., probes, steps)."""
    return torch.stack([(weights * nodes**power).sum(dim=-1).mean(dim=-1) for power in (2, 4)], dim=-1)


def density(multiply, depth, width):
    """All probes at once, without reorthogonalisation, as curvlinops does it for one."""
    q = torch.randn(PROBES, depth * width**2, dtype=torch.float64).T
    q, before, alphas, betas = q / q.norm(dim=0), 0, [], [0]
    for _ in range(STEPS):
        w = multiply(q) - betas[-1] * before
        alphas.append((w * q).sum(dim=0))
        w -= alphas[-1] * q
        betas.append(w.norm(dim=0))
        q, before = w / betas[-1], q
    off = torch.diag_embed(torch.stack(betas[1:-1], dim=1), offset=1)
    nodes, vectors = torch.linalg.eigh(torch.diag_embed(torch.stack(alphas, dim=1)) + off + off.mT)
    return moments(nodes, vectors[:, 0].square())


def density_of_curvlinops(net, h, y):
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    operator = operator_of_curvlinops(net, h, y)
    found = [fast_lanczos(operator, STEPS) for _ in range(PROBES)]
    return moments(torch.stack([nodes for nodes, _ in found]), torch.stack([v[0].square() for _, v in found]))


def pyhessian(task, net, h, y):
    from pyhessian import hessian

    torch.set_default_dtype(torch.float64)  # that of its random vectors, which must be that of the weights
    with warnings.catch_warnings(action="ignore"):  # it calls backward with create_graph=True
        program = hessian(Network(net), Loss(), data=(h, y), cuda=False)
    if task == "top":
        return torch.tensor(program.eigenvalues(maxIter=2000, tol=1e-6, top_n=1)[0])
    nodes, weights = program.density(iter=STEPS, n_v=PROBES)
    return moments(torch.tensor(nodes), torch.tensor(weights))


# ---- ours, for all networks


def vclib(task, net, x, y, tolerance=1e-6):
    if task == "blocks":
        found = curvature.magnitudes(net, x, y, generator=generator())
        return torch.stack([found.diagonal, found.off_diagonal], dim=1)
    if task == "top":
        options = {"largest": 1, "smallest": 1, "generator": generator(), "tolerance": tolerance}
        both = curvature.extreme_eigenvalues(net, x, y, **options)
        return both.gather(1, both.abs().argmax(dim=1, keepdim=True))
    found = curvature.spectral_density(net, x, y, probes=PROBES, steps=STEPS, generator=generator())
    return moments(found.nodes, found.weights)


# ---- running and comparing

TASKS = {"blocks": blocks, "top": top, "density": density, "reference": reference}
OTHERS = {"hessian": hessian, "twice": twice, "PyHessian": pyhessian, "curvlinops": curvlinops}


def tried(tool, task, depth, width):
    return depth * width**2 <= LARGEST if tool == "hessian" else (tool, task) != ("PyHessian", "blocks")


def run(tool, task, net, x, y, patience=PATIENCE):
    """The results, (seeds, numbers), and the processor time for all seeds: scaled up if patience ended before."""
    start = process_time()
    if tool == "vclib":
        return vclib(task, net, x, y), process_time() - start
    torch.manual_seed(0)  # as our generator, for the probes
    results, begun = [], perf_counter()
    for n in range(len(net.a)):
        one = choose(net, [n])
        h = torch.relu(x @ one.a[0].T)
        if tool == "PyHessian":
            results.append(pyhessian(task, one, h, y))
        elif (tool, task) == ("curvlinops", "density"):
            results.append(density_of_curvlinops(one, h, y))
        else:
            results.append(TASKS[task](OTHERS[tool](one, h, y), net.depth, net.width))
        if perf_counter() - begun > patience:
            break
    return torch.stack(results), (process_time() - start) * len(net.a) / len(results)


def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def memory(tool, task, *sizes):
    """MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", tool, task, *map(str, sizes)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def one(tool, task, depth, width, seeds):
    run(tool, task, *problem(4, 4, 1))  # imports what is imported late
    before = peak()
    run(tool, task, *problem(int(depth), int(width), int(seeds)), patience=5)
    print(math.ceil(peak() - before))


def deviation(found, right):
    return float(((found - right[: len(found)]).abs() / right[: len(found)].abs()).max())


def compare(task, depth, width, seeds, worst, notes):
    """Print a row. Returns the smallest ratio of a right result."""
    at, data = (depth, width, seeds), problem(depth, width, seeds)
    times, marks, cells = {}, {}, {}
    ours, first = run("vclib", task, *data)
    times["vclib"] = [first]
    right = run("twice", "reference", *data)[0] if task == "top" else ours
    if task == "top":
        worst["top"] = max(worst["top"], deviation(ours[: len(right)], right))
        worst["tight"] = max(worst["tight"], deviation(vclib("top", *data, tolerance=1e-10)[: len(right)], right))
        assert worst["top"] <= 1e-6, f"{at}: our eigenvalue is off by {worst['top']:.1e}"
        assert worst["tight"] <= 1e-8, f"{at}: our eigenvalue is off by {worst['tight']:.1e} when asked for 1e-10"
    for tool in OTHERS:
        try:
            if not tried(tool, task, depth, width):
                cells[tool] = "-"
                continue
            found, first = run(tool, task, *data)
        except ImportError:
            cells[tool] = "missing"
        except Exception as error:
            cells[tool] = "crashes"
            notes[f"{tool} crashes in {task}: {type(error).__name__}: {str(error).splitlines()[0]}"] = None
        else:
            times[tool], off = [first], deviation(found, right)
            marks[tool] = ("!" if off > 1e-6 else "") + ("~" if len(found) < seeds else "")
            if task != "top":
                worst[task] = max(worst[task], off)
                assert off <= 1e-8, f"{task}, {at}: {tool} and vclib differ by {off:.1e}"
            elif off > 1e-6:
                notes[f"{tool}'s eigenvalue is off by {off:.1e}: L = {depth}, d = {width}, seeds = {seeds}"] = None
    for _ in range(3):
        for tool, taken in times.items():
            if taken[0] < 10:
                taken.append(run(tool, task, *data)[1])
    seconds = {tool: np.median(taken[1:] or taken) for tool, taken in times.items()}
    ratios = {tool: seconds[tool] / seconds["vclib"] for tool in marks}
    for tool, ratio in ratios.items():
        cells[tool] = f"{ratio:.3g}{marks[tool]} | {memory(tool, task, *at):5d}"
    row = f"{1e3 * seconds['vclib']:9.1f} | {memory('vclib', task, *at):5d}"
    row = f"{task:8} {depth:4d} {width:3d} {seeds:5d} {row:>17}" + "".join(f"{cells[tool]:>17}" for tool in OTHERS)
    print(row, flush=True)
    return min((ratio, tool, *at) for tool, ratio in ratios.items() if "!" not in marks[tool])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only depths 16 and 32")
    parser.add_argument("--one", nargs=5, metavar=("TOOL", "TASK", "L", "d", "SEEDS"), help="print its peak in MiB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        return one(*args.one)
    worst, notes = dict.fromkeys(["blocks", "top", "tight", "density"], 0.0), {}
    smallest = {1: [], 15: []}
    titles = "".join(f"{name:>17}" for name in ["vclib", *OTHERS])
    units = f"{'ms | MiB':>17}" + len(OTHERS) * f"{'ratio | MiB':>17}"
    print(f"{'task':8} {'L':>4} {'d':>3} {'seeds':>5} {titles}\n{units:>{len(titles) + 24}}")
    for task in ("blocks", "top", "density"):
        for seeds, ratios in smallest.items():
            for depth in (16, 32) if args.quick else (16, 32, 64, 128):
                for width in (math.ceil(depth**0.5), 32):
                    ratios.append((*compare(task, depth, width, seeds, worst, notes), task))
    print(*notes, sep="\n")
    print("largest relative difference:", ", ".join(f"{name} {value:.0e}" for name, value in worst.items()))
    for seeds, ratios in smallest.items():
        ratio, tool, depth, width, _, task = min(ratios)
        print(f"smallest ratio for {seeds} seeds: {ratio:.2f}, {tool}, {task}, L = {depth}, d = {width}")


if __name__ == "__main__":
    main()
