"""Run an experiment of chapter 12 at the paper's own size and store it in book/results.

    .venv/bin/python tools/paper_scale.py figure-5 [--epochs 60] [--checkpoints _build/paper]

It takes minutes on a GPU and up to hours on two processor cores. A run that is killed goes on where it was.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch

from vclib import data, initialization, networks, rays, results, runtime, training
from vclib.training import SGD, Adam, RMSprop

ROOT = Path(__file__).resolve().parent.parent
PAPER = [SGD(1e-4), SGD(1e-4, momentum=0.9), RMSprop(1e-5), Adam(1e-5)]  # the rates of Appendix A.1
GRID = [1e-3, 5e-4, 1e-4, 5e-5, 1e-5, 5e-6, 1e-6, 5e-7, 1e-7, 5e-8, 1e-8]  # those it searched
LARGER = [1e-2, 1e-1]  # and two more
METHODS = [lambda r: SGD(r), lambda r: SGD(r, momentum=0.9), lambda r: RMSprop(r), lambda r: Adam(r)]
BASE = {"depth": 128, "width": 32, "batch": 128, "biases": "none", "loss": "cross-entropy", "inputs": "standardised"}
CHOICES = [{"biases": "zero"}, {"biases": "uniform"}, {"loss": "squared error"}, {"inputs": "from 0 to 1"}]

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
    h = rays.features(net, x)[-1]
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


def main() -> None:
    """Read the command line, run, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--epochs", type=int, help="instead of the experiment's own number")
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "_build/paper", help="folder for what is unfinished")
    arguments = parser.parse_args()
    code = results.revision()
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
