"""Results of runs that are too long for a page, stored with what they came from."""

import json
import math
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "stored" if (PACKAGE / "stored").is_dir() else PACKAGE.parent / "book/results"  # installed, or not
PROVENANCE = ("date", "device", "torch", "cuda", "seconds", "seeds", "parameters", "revision")


@dataclass(frozen=True)
class Result:
    """What was computed (``values``), and its ``provenance``.

    The provenance has the date, the device, the versions of PyTorch and CUDA, the seconds it took, the seeds, all
    parameters, and the git revision of the code.
    """

    name: str
    provenance: dict[str, Any]
    values: dict[str, Any] = field(repr=False)

    @property
    def note(self) -> str:
        """Say in one sentence, for a caption, where the numbers come from."""
        p = self.provenance
        cuda = f", CUDA {p['cuda']}" if p["cuda"] else ""
        time = f"{p['seconds']} seconds" if p["seconds"] < 120 else f"{p['seconds'] / 60:.0f} minutes"
        return (
            f"Stored result of {p['date'][:10]}: {p['device']}, PyTorch {p['torch']}{cuda}, {time}, "
            f"revision {p['revision']}."
        )


def load(name: str, *, folder: Path = FOLDER) -> Result | None:
    """Return the stored result of this name, or None if it has not been run.

    Results are in ``book/results`` of the project, and an installed vclib brings them along. Raises ValueError if the
    file is damaged.

    >>> load("no such figure") is None
    True
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        provenance = {key: content["provenance"][key] for key in PROVENANCE}
        return Result(name, provenance, content["values"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The stored result {file} is damaged; restore it with git, or run it anew.") from error


def revision() -> str:
    """Return the git revision of the code, with "-dirty" if vclib or tools have changed since, or "unknown"."""
    git = ["git", "-C", str(PACKAGE.parent)]
    try:
        head, changed = (
            subprocess.run(git + command, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--", "vclib", "tools"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def store(
    name: str,
    values: dict[str, Any],
    *,
    seconds: float,
    seeds: list[int],
    parameters: dict[str, Any],
    code: str | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Write a result and its provenance to ``folder/name.json``, and return the path.

    Numbers keep five significant digits; NaN and infinity become null. ``code`` is the :func:`revision` that a long
    run was started with; without it, the present one is noted.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     path = store("pi", {"pi": [math.pi]}, seconds=60.0, seeds=[0], parameters={}, folder=Path(place))
    ...     load("pi", folder=Path(place)).values
    {'pi': [3.1416]}
    """
    provenance = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "seconds": round(seconds),
        "seeds": seeds,
        "parameters": _short(parameters),
        "revision": code or revision(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    new = path.with_suffix(".new")
    content = json.dumps({"provenance": provenance, "values": _short(values)}, separators=(",", ":"), allow_nan=False)
    new.write_text(content + "\n", encoding="utf-8")
    new.replace(path)
    return path


def _short(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    return f"CPU ({model}, {torch.get_num_threads()} threads)"
