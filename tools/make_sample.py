"""Build vclib/sample: a few Fashion-MNIST images of each class, in the official order.

With vclib installed, run ``python tools/make_sample.py [FOLDER]``. FOLDER holds the official gzipped IDX files; the
default is where Debian's package dataset-fashion-mnist puts them. The result does not depend on day or machine.
"""

import gzip
import sys
from pathlib import Path

import numpy as np

from vclib.imagefiles import idx_bytes, read_idx

SAMPLE = Path(__file__).resolve().parent.parent / "vclib" / "sample"


def write(name: str, array: np.ndarray) -> None:
    """Write a gzipped IDX file without name or time stamp in its header."""
    (SAMPLE / name).write_bytes(gzip.compress(idx_bytes(array), compresslevel=9, mtime=0))


def main(folder: Path) -> None:
    """Take the first 50 (train) and the first 10 (test) images of each class."""
    for prefix, per_class in {"train": 50, "t10k": 10}.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        index = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:per_class] for digit in range(10)]))
        write(f"{prefix}-images-idx3-ubyte.gz", images[index])
        write(f"{prefix}-labels-idx1-ubyte.gz", labels[index])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
