"""How much faster is vclib.training than a loop over torch.optim? Run `python benchmarks/training.py`.

Both train ReLU networks of depth 128 and width 32 without biases, with He's law, on Fashion-MNIST: cross-entropy,
batches of 128, float32, the same weights and the same batches. The members of an ensemble are seeds (ten, if their
number is a multiple of ten) times optimisers of different step sizes: 440 are 10 seeds, 4 methods and 11 step sizes. A
row has one method, and all its optimisers have different step sizes, or the "mix" of all four methods (where their
number is a multiple of four).

    ensemble  one call for all members: forward, backward, the test for divergence, and the step
    loop      the members one after another: torch.nn.Sequential, autograd and torch.optim, with torch's default (on a
              processor "plain", foreach=False) and with the fastest of "plain", "foreach" and "fused" (RMSprop has
              none). It is timed for a few members and scaled by the number of members, since it costs the same for
              each: see "~"
    func      torch.func: vmap over the members of grad of functional_call, at most 40 members at once on a processor;
              only for gradient descent
    x         their time over ours

Times are wall time for one step of all members: the median over turns, which all competitors take one after another.
Taking the batches out of the training set is in all times; measuring curves and saving checkpoints is in none.

Before anything is timed, what four steps change in the weights must agree to 1e-8 in float64, relative to the largest
change in a matrix: that of the ensemble that is timed, of `vclib.training.train`, of the loop and of torch.func.
"""

import argparse
from itertools import product
from statistics import median
from time import perf_counter

import torch

from vclib import data, training
from vclib.initialization import he
from vclib.networks import mlp
from vclib.training import SGD, Adam, RMSprop

METHODS = {
    "SGD": lambda rate: SGD(rate),
    "momentum": lambda rate: SGD(rate, momentum=0.9),
    "RMSprop": lambda rate: RMSprop(rate),
    "Adam": lambda rate: Adam(rate),
}
VARIANTS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
AT_ONCE = 40  # members that vmap takes at once on a processor
CHECKED = 4  # steps before anything is timed


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sizes(members):
    """Seeds and optimisers."""
    seeds = 10 if members % 10 == 0 else 1
    return seeds, members // seeds


def optimizers(kind, count):
    """``count`` optimisers of different step sizes, neighbours of one method; None if there is no such mix."""
    kinds = list(METHODS) if kind == "mix" else [kind]
    if count % len(kinds):
        return None
    each = count // len(kinds)
    return [METHODS[name](10 ** (-6 + 2 * k / each)) for name in kinds for k in range(each)]


def draw(args, seeds):
    sizes = {"depth": args.depth, "width": args.width, "inputs": 784, "outputs": 10, "seeds": seeds}
    generator = torch.Generator().manual_seed(0)
    return mlp(**sizes, law=he, activation="relu", generator=generator, device=args.device)


def training_set(args):
    if args.random:
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(60_000, 784, generator=generator), torch.randint(10, (60_000,), generator=generator)
        return x.to(args.device), y.to(args.device), "random numbers"
    images = data.fashion_mnist(split="train")
    return images.standardized(dtype=torch.float32).to(args.device), images.labels.to(args.device), images.note


# ---- the competitors: `step` takes the indices of the batches (seeds, batch), `weights` are lists of (members, ., .)


def of_members(networks):
    """The matrices of networks of all seeds, one network for each optimiser."""
    layers = zip(*([net.a, *net.hidden, net.b] for net in networks), strict=True)
    return [torch.stack(layer, dim=1).flatten(0, 1) for layer in layers]


class Ensemble:
    """What `training.train` does at every step."""

    def __init__(self, net, chosen, x, y):
        self.members = training._Members(net, len(chosen), "cross-entropy", x.device, x.dtype)
        self.groups, self.net, self.x, self.y, self.k = training._groups(chosen, self.members), net, x, y, 0
        self.finite = torch.ones(len(net.a), len(chosen), dtype=torch.bool, device=x.device)

    def step(self, index):
        self.k += 1
        losses, _ = self.members.run(self.x[index], self.y[index])
        self.finite &= losses.isfinite()
        for group in self.groups:
            group.step(self.k)

    def weights(self):
        return of_members(self.members.networks(self.net))


def modules(net, s, dtype):
    """One network of torch."""
    layers = []
    for w in (net.a, *net.hidden, net.b):
        layer = torch.nn.Linear(w.shape[2], w.shape[1], bias=False, device=w.device, dtype=dtype)
        layer.weight.data.copy_(w[s])
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def of_torch(rule, parameters, **variant):
    if isinstance(rule, SGD):
        return torch.optim.SGD(parameters, lr=rule.step_size, momentum=rule.momentum, **variant)
    if isinstance(rule, RMSprop):
        variant = {"foreach": True} if "fused" in variant else variant
        return torch.optim.RMSprop(parameters, lr=rule.step_size, alpha=rule.beta2, eps=rule.eps, **variant)
    betas = rule.beta1, rule.beta2
    return torch.optim.Adam(parameters, lr=rule.step_size, betas=betas, eps=rule.eps, **variant)


class Loop:
    """Some members, (s, c), one after another."""

    def __init__(self, net, chosen, x, y, members, **variant):
        self.x, self.y, self.parts = x, y, []
        for s, c in members:
            network = modules(net, s, x.dtype)
            self.parts.append((s, network, of_torch(chosen[c], network.parameters(), **variant)))

    def step(self, index):
        for s, network, optimizer in self.parts:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(self.x[index[s]]), self.y[index[s]]).backward()
            optimizer.step()

    def weights(self):
        trained = [[p.detach() for p in network.parameters()] for _, network, _ in self.parts]
        return [torch.stack(layer) for layer in zip(*trained, strict=True)]


class Func:
    """All members by torch.func, with gradient descent."""

    def __init__(self, net, chosen, x, y):
        self.x, self.y, self.copies = x, y, len(chosen)
        network = modules(net, 0, x.dtype).to("meta")
        names, every = [name for name, _ in network.named_parameters()], (net.a, *net.hidden, net.b)
        self.parameters = {
            name: w.to(x.dtype).repeat_interleave(self.copies, dim=0) for name, w in zip(names, every, strict=True)
        }
        rates = torch.tensor([rule.step_size for rule in chosen], dtype=x.dtype, device=x.device)
        self.rates = rates.repeat(len(net.a))[:, None, None]

        def loss(parameters, x, y):
            return torch.nn.functional.cross_entropy(torch.func.functional_call(network, parameters, (x,)), y)

        chunk = AT_ONCE if x.device.type == "cpu" else None
        self.gradient = torch.func.vmap(torch.func.grad(loss), chunk_size=chunk)

    def step(self, index):
        index = index.repeat_interleave(self.copies, dim=0)
        gradients = self.gradient(self.parameters, self.x[index], self.y[index])
        for name, w in self.parameters.items():
            w.sub_(self.rates * gradients[name])

    def weights(self):
        return list(self.parameters.values())


# ---- the same results


def deviation(found, right, start):
    """The largest difference in a matrix over the largest change, for lists of (members, rows, columns)."""
    worst = 0.0
    for v, w, before in zip(found, right, start, strict=True):
        change = (w - before).abs().amax(dim=(1, 2))
        assert change.all(), "a matrix has not moved"
        worst = max(worst, float(((v - w).abs().amax(dim=(1, 2)) / change).max()))
    return worst


def indices(seeds, steps, n, batch, device):
    """The batches of the first epoch, (steps, seeds, batch)."""
    orders = torch.from_numpy(training._orders(0, seeds, 1, n)).to(device)
    count = n // batch
    return [orders[:, k % count * batch : (k % count + 1) * batch] for k in range(steps)]


def check(args, x, y):
    """All competitors do the same; returns the largest deviation."""
    net, members, found = draw(args, 2), list(product(range(2), range(4))), {}
    x, y = x[: CHECKED * args.batch].double(), y[: CHECKED * args.batch]
    start = [w.repeat_interleave(4, dim=0) for w in (net.a, *net.hidden, net.b)]
    for kind in (*METHODS, "mix"):
        chosen = optimizers(kind, 4)
        tools = {"ensemble": Ensemble(net, chosen, x, y)}
        tools |= {name: Loop(net, chosen, x, y, members, **options) for name, options in variants(kind)}
        if kind == "SGD":
            tools["func"] = Func(net, chosen, x, y)
        for batch, tool in product(indices(2, CHECKED, len(x), args.batch, x.device), tools.values()):
            tool.step(batch)
        options = {"epochs": 1, "batch": args.batch, "dtype": torch.float64, "measured": 1}
        history = training.train(net, chosen, (x, y), (x[:1], y[:1]), **options)
        right = of_members(history.networks)
        for name, tool in tools.items():
            found[f"{kind}, {name}"] = deviation(tool.weights(), right, start)
    for name, difference in found.items():
        assert difference <= 1e-8, f"{name} and training.train differ by {difference:.1e}"
    return max(found.values())


# ---- the times


def variants(kind):
    return [(name, options) for name, options in VARIANTS.items() if (kind, name) != ("RMSprop", "fused")]


def seconds(tool, index, device):
    """For one step."""
    synchronize(device)
    start = perf_counter()
    for batch in index:
        tool.step(batch)
    synchronize(device)
    return (perf_counter() - start) / len(index)


def compare(args, members, kind, x, y):
    """Print a row."""
    seeds, count = sizes(members)
    chosen = optimizers(kind, count)
    if chosen is None:
        return
    net, every = draw(args, seeds), list(product(range(seeds), range(count)))
    if len(every) <= args.loop_members:
        few = every
    else:  # evenly over the optimisers, so that all methods of a mix are there
        few = [(k % seeds, k * count // args.loop_members) for k in range(args.loop_members)]
    tools = {"vclib": Ensemble(net, chosen, x, y)}
    tools |= {name: Loop(net, chosen, x, y, few, **options) for name, options in variants(kind)}
    if kind == "SGD":
        tools["func"] = Func(net, chosen, x, y)
    index, times = indices(seeds, args.steps, len(x), args.batch, x.device), {}
    for tool in tools.values():
        seconds(tool, index[:2], x.device)  # not counted: the first calls are slow
    for _ in range(args.turns):
        for name, tool in tools.items():
            times.setdefault(name, []).append(seconds(tool, index, x.device))
    times = {name: 1e3 * median(taken) for name, taken in times.items()}
    loops = {name: times[name] * len(every) / len(few) for name, _ in variants(kind)}
    name, ours = min(loops, key=loops.get), times["vclib"]
    default = loops["foreach" if x.is_cuda else "plain"]
    scaled = "~" if few != every else " "
    row = f"{members:7d} {kind:9} {ours:9.2f} {default:9.1f}{scaled}{default / ours:6.1f}"
    row += f" {loops[name]:9.1f}{scaled}{loops[name] / ours:6.1f}  {name:8}"
    row += f"{times['func']:9.1f} {times['func'] / ours:6.1f}" if "func" in times else f"{'-':>9} {'-':>6}"
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 10, 40, 440])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--loop-members", type=int, default=4, help="members of the loop that are timed")
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, help="without it, torch decides")
    parser.add_argument("--device", help="cuda or cpu; without it, cuda if there is a GPU")
    parser.add_argument("--random", action="store_true", help="random numbers of the same shape, no data set")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    x, y, source = training_set(args)
    where = torch.cuda.get_device_name() if args.device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"depth {args.depth}, width {args.width}, batches of {args.batch}; {source}")
    print(f"{where}, torch {torch.__version__}; {args.turns} turns of {args.steps} steps")
    print(f"largest relative difference in the change of the weights: {check(args, x, y):.0e}", flush=True)
    print(f"{'':17} {'ensemble':>9} {'loop, default':>16} {'loop, fastest':>26} {'func':>16}")
    print(f"{'members':>7} {'method':9} {'ms':>9} {'ms':>9}{'x':>7} {'ms':>9}{'x':>7} {'':9}{'ms':>9}{'x':>7}")
    for members, kind in product(args.members, (*METHODS, "mix")):
        compare(args, members, kind, x, y)
    print(f"~ timed for {args.loop_members} members, and scaled by the number of members")


if __name__ == "__main__":
    main()
