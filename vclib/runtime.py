"""Where a notebook runs and how much it computes: scale, device, random generators, progress."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeVar

import joblib
import numpy as np
import torch
from tqdm.auto import tqdm

torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions keep float32's seven digits

SCALES = ("smoke", "laptop", "paper")
T = TypeVar("T")


def scale() -> str:
    """Return the size of the experiments: ``"smoke"``, ``"laptop"`` or ``"paper"``.

    The environment variable ``VCLIB_SCALE`` decides; without it, ``"paper"`` when a GPU is present and
    ``"laptop"`` otherwise.

    Raises ValueError if ``VCLIB_SCALE`` names no scale.

    >>> scale() in SCALES
    True
    """
    name = os.environ.get("VCLIB_SCALE", "") or ("paper" if torch.cuda.is_available() else "laptop")
    if name not in SCALES:
        raise ValueError(f"VCLIB_SCALE is {name!r}; set it to 'smoke', 'laptop' or 'paper'.")
    return name


def choose(*, smoke: T, laptop: T, paper: T) -> T:
    """Return what to use at the current :func:`scale`: quick test, two processor cores, or the paper's own size.

    >>> choose(smoke=2, laptop=2, paper=2)
    2
    """
    return {"smoke": smoke, "laptop": laptop, "paper": paper}[scale()]


def device() -> torch.device:
    """Return the GPU if there is one, and the processor otherwise.

    >>> device().type in {"cuda", "cpu"}
    True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generators(seed: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return fresh generators for numpy and torch; the same seed gives the same numbers on every device.

    Raises ValueError if ``seed`` is not a non-negative integer.

    >>> rng, torch_rng = generators(1)
    >>> bool(rng.random() == generators(1)[0].random())
    True
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"A seed is a non-negative integer, not {seed!r}.")
    return np.random.default_rng(int(seed)), torch.Generator().manual_seed(int(seed))


def progress(items: Iterable[T], description: str = "", **options: Any) -> Iterable[T]:
    """Iterate with a tqdm bar (``**options`` are its) that appears after a second, vanishes at the end, and never
    enters a built page.

    >>> sum(progress(range(4)))
    6
    """
    if not (sys.stderr.isatty() or ("ipykernel" in sys.modules and not os.environ.get("VCLIB_STATIC"))):
        return items  # also a disabled bar would take a lock, which a killed process never gives back
    return tqdm(items, desc=description, leave=False, **{"delay": 1} | options)


def sweep(function: Callable[..., T], settings: Sequence[Mapping[str, Any]]) -> list[T]:
    """Call ``function(**setting)`` for every setting, through joblib, and return the results in the same order.

    One process computes them, unless a line around the call says otherwise: ``with joblib.parallel_config(...):`` and
    in the brackets ``n_jobs=8`` for eight processes of this machine, ``backend="dask"`` for a dask cluster whose
    client is open, or ``backend="ray"`` after ``ray.util.joblib.register_ray()``. A setting that names its seed gives
    the same result everywhere. The function must be importable where it runs, or defined in a notebook.

    >>> sweep(pow, [{"base": 2, "exp": 3}, {"base": 3, "exp": 2}])
    [8, 9]
    """
    return joblib.Parallel()(joblib.delayed(function)(**setting) for setting in settings)


def announce() -> None:
    """Print scale and device in one line.

    >>> announce()  # doctest: +ELLIPSIS
    scale: ... · device: ...
    """
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    print(f"scale: {scale()} · device: {where}")
