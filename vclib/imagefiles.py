"""Readers of the files that image data sets come in: IDX, CIFAR-10's binary batches, and npm's PNG sheets."""

import gzip
import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLE = Path(__file__).with_name("sample")


class DamagedData(ValueError):
    """The file ``path`` is damaged, missing beside its companion, or not the official one."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} {self.args[1]}; put a fresh copy in its place."


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Read an IDX file, gzipped or plain, as uint8: bytes 0, 0, 8 and axes, big-endian lengths, then the values.

    Raises DamagedData if the compression, the magic number or the length is wrong.

    >>> read_idx(SAMPLE / "train-images-idx3-ubyte.gz").shape
    (500, 28, 28)
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedData(path, "is a damaged or truncated gzip file") from error
    start = 4 + 4 * content[3] if len(content) > 4 else 0
    if content[:3] != b"\0\0\x08" or not 4 < start <= len(content):
        raise DamagedData(path, "does not begin with the header of an IDX file of bytes")
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise DamagedData(path, f"has {len(content):,} bytes where its header says {start + math.prod(shape):,}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_cifar_binary(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a CIFAR-10 binary file, records of a label and 3 x 1,024 bytes, as uint8 (n, 3, 32, 32) and (n,).

    Raises DamagedData if it is not a whole number of records, or a label exceeds 9.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "batch.bin").write_bytes(bytes([7] + 3072 * [0]))
    ...     read_cifar_binary(Path(folder, "batch.bin"))[1].tolist()
    [7]
    """
    content = np.fromfile(path, dtype=np.uint8)
    if not len(content) or len(content) % 3073:
        raise DamagedData(Path(path), f"has {len(content):,} bytes, not a whole number of 3,073-byte records")
    labels, images = np.split(content.reshape(-1, 3073), [1], axis=1)
    if labels.max() > 9:
        raise DamagedData(Path(path), "has labels above 9")
    return images.reshape(-1, 3, 32, 32), labels[:, 0]


def idx_bytes(array: np.ndarray) -> bytes:
    """The content of an IDX file that holds a uint8 array."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The content of a binary batch that holds uint8 images (n, 3, 32, 32) and labels (n,)."""
    return np.column_stack([labels, images.reshape(len(labels), 3072)]).tobytes()


def read_sheet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one of npm's PNG sheets (row i is image i, 1,024 pixels long) with its labels."""
    test = path.stem == "test_batch"
    labels_path = path.with_name("test_lables.json" if test else "train_lables.json")  # sic
    try:
        labels = np.frombuffer(bytes(json.loads(labels_path.read_text())), dtype=np.uint8)
    except (OSError, TypeError, ValueError) as error:
        raise DamagedData(labels_path, "is missing or not a JSON list of labels") from error
    labels = labels if test else np.array_split(labels, 5)[int(path.stem[-1]) - 1]
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedData(path, "is a damaged or truncated PNG file") from error
    if pixels.shape != (len(labels), 1024, 3):
        height, width, _ = pixels.shape
        raise DamagedData(path, f"has {height} rows of {width} pixels, not {len(labels)} (one a label) of 1024")
    return pixels.transpose(0, 2, 1).reshape(-1, 3, 32, 32), labels
