"""Run an experiment of chapters 12 to 15 at the paper's own size and store it in book/results.

    .venv/bin/python tools/paper_scale.py figure-5 [--epochs 60] [--checkpoints _build/paper]

It takes minutes on a GPU and up to hours on two processor cores. A run that is killed goes on where it was.
"""

import argparse
import json
import math
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

from vclib import curvature, data, initialization, networks, rays, results, runtime, training
from vclib.training import SGD, Adam, RMSprop

ROOT = Path(__file__).resolve().parent.parent
PAPER = [SGD(1e-4), SGD(1e-4, momentum=0.9), RMSprop(1e-5), Adam(1e-5)]  # the rates of Appendix A.1
GRID = [1e-3, 5e-4, 1e-4, 5e-5, 1e-5, 5e-6, 1e-6, 5e-7, 1e-7, 5e-8, 1e-8]  # those it searched
LARGER = [1e-2, 1e-1]  # and two more
METHODS = [lambda r: SGD(r), lambda r: SGD(r, momentum=0.9), lambda r: RMSprop(r), lambda r: Adam(r)]
BASE = {"depth": 128, "width": 32, "batch": 128, "biases": "none", "loss": "cross-entropy", "inputs": "standardised"}
CHOICES = [{"biases": "zero"}, {"biases": "uniform"}, {"loss": "squared error"}, {"inputs": "from 0 to 1"}]

STAGES = [  # Appendix A.1: blocks in the four stages of nine stripped ResNets
    [2, 2, 2, 2],
    [2, 4, 4, 2],
    [3, 4, 6, 3],
    [3, 4, 23, 3],
    [3, 8, 36, 3],
    [3, 24, 36, 3],
    [3, 36, 48, 3],
    [3, 44, 62, 3],
    [3, 70, 90, 3],
]
VARIANTS = {"stripped": {}, "wide": {"base": 128}, "big": {"big": True}, "circular": {"padding": "circular"}}
RATES = [  # of a small stripped ResNet
    *(SGD(r) for r in (1e-1, 1e-2, 1e-3)),
    *(SGD(r, momentum=0.9) for r in (1e-2, 1e-3, 1e-4)),
    *(RMSprop(r) for r in (1e-3, 3e-4, 1e-4)),
    *(Adam(r) for r in (1e-3, 3e-4, 1e-4)),
]
PAPER_RESNET = [SGD(1e-3), SGD(1e-4, momentum=0.9), RMSprop(1e-6), Adam(1e-6)]
TRAINED = {  # name: setting, optimisers, seeds, epochs
    "figure-8-small": (
        {"blocks": [3, 4, 6, 3], "base": 8, "stem": "imagenet", "batch": 64, "images": 1000},
        RATES,
        2,
        80,
    ),
    "figure-8": (
        {"blocks": [3, 70, 90, 3], "base": 64, "stem": "cifar", "batch": 64, "images": None},
        PAPER_RESNET,
        1,
        30,
    ),
}
EXPERIMENTS = {  # name: settings, optimisers, seeds, epochs
    "figure-5": ([{}], PAPER, 10, 60),
    "figure-5-rates": ([{}], [m(r) for m, r in product(METHODS, LARGER + GRID)], 3, 10),
    "figure-5-choices": (CHOICES, PAPER, 3, 30),
    "figure-9": ([{"width": 128}], PAPER, 3, 10),
    "figure-9-momentum": ([{"width": 128}], [SGD(1e-5, momentum=0.9)], 3, 10),
}


def images(inputs: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set, on the device."""
    sets = [data.fashion_mnist(split=split) for split in ("train", "test")]
    pixels = [s.standardized(dtype=torch.float32) if inputs == "standardised" else s.images.flatten(1) for s in sets]
    return [(x.to(runtime.device()), s.labels.to(runtime.device())) for x, s in zip(pixels, sets, strict=True)]


def on_ray(net: networks.MLP, x: torch.Tensor, y: torch.Tensor) -> dict[str, list]:
    """For each seed: share outside the ray, classes that get at least one in a hundred images, best loss on a ray."""
    *_, h = net.signals(x)
    named = [torch.bincount(f.argmax(dim=1), minlength=10) for f in net(x)]
    lengths = h.norm(dim=1).double().cpu().numpy()
    good = [np.isfinite(r).all() for r in lengths]
    return {
        "outside_share": rays.outside_share(h).tolist(),
        "classes": [int((count >= len(x) / 100).sum()) for count in named],
        "ray_loss": [
            rays.ray_loss(r, y.cpu(), classes=10) if g else np.nan for r, g in zip(lengths, good, strict=True)
        ],
    }


def run(*, setting: dict, optimizers: list, seeds: int, epochs: int, checkpoint: Path) -> tuple[list[dict], float]:
    """Train one ensemble; return the curves of its members, one entry for each optimiser, and the seconds it took."""
    _, generator = runtime.generators(0)
    net = networks.mlp(
        depth=setting["depth"],
        width=setting["width"],
        inputs=784,
        outputs=10,
        law=initialization.he,
        activation="relu",
        seeds=seeds,
        generator=generator,
        biases=setting["biases"],
        device=runtime.device(),
    )
    train_set, test_set = images(setting["inputs"])
    history = training.train(
        net,
        optimizers,
        train_set,
        test_set,
        epochs=epochs,
        batch=setting["batch"],
        loss=setting["loss"],
        checkpoint=checkpoint,
    )
    entries = [
        {"optimizer": repr(optimizer), **setting, "diverged": history.diverged[c].tolist()}
        | {name: getattr(history, name)[:, c].T.tolist() for name in training.CURVES}
        | on_ray(history.networks[c], *(part[:5000] for part in train_set))
        for c, optimizer in enumerate(optimizers)
    ]
    return entries, history.seconds


def train_resnet(name: str, epochs: int | None, folder: Path, code: str) -> Path:
    """Train a stripped ResNet on CIFAR-10 with all optimisers, and store the curves."""
    setting, optimizers, seeds, usual = TRAINED[name]
    epochs, (_, generator) = epochs or usual, runtime.generators(0)
    sets = []
    for split, most in (("train", setting["images"]), ("test", setting["images"] and setting["images"] // 2)):
        sample = data.cifar10(split=split, count=most, generator=generator)
        sets.append((sample.standardized(dtype=torch.float32).view_as(sample.images), sample.labels))
    net = networks.stripped_resnet(
        blocks=setting["blocks"],
        base=setting["base"],
        stem=setting["stem"],
        inputs=3,
        outputs=10,
        law=initialization.he,
        activation="relu",
        seeds=seeds,
        generator=generator,
        device=runtime.device(),
        dtype=torch.float32,
    )
    history = training.train(
        net, optimizers, *sets, epochs=epochs, batch=setting["batch"], measured=500, checkpoint=folder / f"{name}.pt"
    )
    runs = [
        {"optimizer": repr(optimizer), "diverged": history.diverged[c].tolist()}
        | {curve: getattr(history, curve)[:, c].T.tolist() for curve in training.CURVES}
        for c, optimizer in enumerate(optimizers)
    ]
    parameters = setting | {"epochs": epochs, "loss": "cross-entropy", "inputs": "standardised", "measured": 500}
    return results.store(
        name,
        {"runs": runs},
        seconds=history.seconds,
        seeds=list(range(seeds)),
        parameters=parameters,
        code=code,
    )


def resnets(stems: list[str], variants: dict[str, dict], **more) -> list[dict]:
    """Settings of the nine stripped ResNets."""
    return [
        {"stem": stem, "variant": name, "blocks": blocks} | more | variant
        for stem, (name, variant), blocks in product(stems, variants.items(), STAGES)
    ]


def fcns(resolution: int, channels: str, paddings: list[str], depths: list[int], **more) -> list[dict]:
    """Settings of fully convolutional networks of depth L with L or ceil(sqrt L) channels."""
    return [
        {"resolution": resolution, "channels": channels, "padding": padding, "depth": depth} | more
        for padding, depth in product(paddings, depths)
    ]


def born(*, seed: int, columns: int, images: int, **setting) -> dict:
    """Gradient norm (mean over layers), and Hessian magnitudes from ``columns`` columns, of one untrained network."""
    _, generator = runtime.generators(seed)
    sample = data.cifar10(count=images, generator=generator)
    x = sample.standardized(dtype=torch.float32).view_as(sample.images).to(runtime.device())
    options = {"inputs": 3, "law": initialization.he, "activation": "relu", "seeds": 1, "dtype": torch.float32}
    options |= {"device": x.device, "generator": generator}
    if "stem" in setting:
        y = torch.nn.functional.one_hot(sample.labels, 10).float().to(x.device)
        setting = {"base": 64} | {name: value for name, value in setting.items() if name != "variant"}
        net = networks.stripped_resnet(outputs=10, **setting, **options)
    else:
        y = x = torch.nn.functional.adaptive_avg_pool2d(x, setting["resolution"])
        depth, padding = setting["depth"], setting["padding"]
        channels = depth if setting["channels"] == "L" else math.ceil(depth**0.5)
        net = networks.fcn(depth=depth, channels=channels, padding=padding, outputs=3, **options)
    if not columns:
        return {"depth": net.depth, "gradient": curvature.gradient_norms(net, x, y).mean().item()}
    found = curvature.magnitudes(net, x, y, columns=columns, generator=generator)
    return {"depth": net.depth} | {name: value.item() for name, value in vars(found).items()}


UNTRAINED = {  # name: seeds, settings
    "figure-6": (15, fcns(7, "L", ["zeros", "circular"], [8, 16, 32, 64, 128], columns=4, images=32)),
    "figure-16": (
        5,
        fcns(32, "sqrt L", ["zeros"], [8, 16, 32, 64, 128], columns=4, images=32)
        + fcns(32, "L", ["zeros"], [8, 16, 32], columns=4, images=32)
        + fcns(32, "L", ["zeros"], [64], columns=0, images=32),
    ),
    "figure-16-padding": (
        5,
        fcns(32, "sqrt L", ["circular"], [8, 16, 32, 64, 128], columns=0, images=32)
        + fcns(32, "L", ["circular"], [8, 16, 32, 64, 128], columns=0, images=32)
        + fcns(32, "L", ["zeros"], [128], columns=0, images=32),
    ),
    "figure-7": (5, resnets(["imagenet", "cifar"], VARIANTS, columns=0, images=8)),
    "figure-7-hessian": (
        3,
        resnets(["imagenet"], {"stripped": {}}, columns=4, images=4)
        + resnets(["cifar"], {"stripped": {}}, columns=4, images=4)[:4],
    ),
}


def measure(name: str, folder: Path, code: str) -> Path:
    """Measure untrained networks, one after the other, and store them; what is known from before is kept."""
    seeds, settings = UNTRAINED[name]
    path, begun = folder / f"{name}.json", time.perf_counter()
    known = json.loads(path.read_text()) if path.exists() else {"runs": [], "seconds": 0.0}
    done = len(known["runs"])
    folder.mkdir(parents=True, exist_ok=True)
    for seed, setting in list(product(range(seeds), settings))[done:]:
        known["runs"].append({"seed": seed} | setting | born(seed=seed, **setting))
        now = time.perf_counter()
        known["seconds"], begun = known["seconds"] + now - begun, now
        path.with_suffix(".new").write_text(json.dumps(known))
        path.with_suffix(".new").replace(path)
    parameters = {"dtype": "float32", "law": "uniform He", "loss": "squared error", "base": 64}
    values = {"runs": known["runs"]}
    return results.store(
        name, values, seconds=known["seconds"], seeds=list(range(seeds)), parameters=parameters, code=code
    )


def main() -> None:
    """Read the command line, run, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, *UNTRAINED, *TRAINED])
    parser.add_argument("--epochs", type=int, help="instead of the experiment's own number")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "_build/paper", help="folder for what is unfinished")
    arguments = parser.parse_args()
    code = results.revision()
    if arguments.experiment in UNTRAINED:
        print(f"Stored {measure(arguments.experiment, arguments.checkpoints, code)}.")
        return
    if arguments.experiment in TRAINED:
        path = train_resnet(arguments.experiment, arguments.epochs, arguments.checkpoints, code)
        print(f"Stored {path}.")
        return
    changes, optimizers, seeds, epochs = EXPERIMENTS[arguments.experiment]
    epochs = arguments.epochs or epochs
    settings = [
        {
            "setting": BASE | change,
            "optimizers": optimizers,
            "seeds": seeds,
            "epochs": epochs,
            "checkpoint": arguments.checkpoints / f"{arguments.experiment}-{number}.pt",
        }
        for number, change in enumerate(changes)
    ]
    parts = runtime.sweep(run, settings)
    path = results.store(
        arguments.experiment,
        {"runs": [entry for entries, _ in parts for entry in entries]},
        seconds=sum(seconds for _, seconds in parts),
        seeds=list(range(seeds)),
        parameters=BASE | {"changes": changes, "epochs": epochs, "generator": 0, "measured": 5000},
        code=code,
    )
    print(f"Stored {path}.")


if __name__ == "__main__":
    main()
