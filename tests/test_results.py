"""Stored results: what is written is what is read, and those of the project say where they come from."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vclib import results
from vclib.results import PROVENANCE, Result, load, store

modest = settings(deadline=None, max_examples=50, derandomize=True)
STORED = sorted(results.FOLDER.glob("*.json"))
numbers = (
    st.floats(-1e300, 1e300)
    | st.sampled_from([math.nan, math.inf, -math.inf])
    | st.integers()
    | st.booleans()
    | st.none()
    | st.text()
)
values = st.dictionaries(
    st.text(), st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
ABSOLUTE = re.compile(r"""(?:^|["'\s(=:])(?:/[\w.-]+){2,}|\b[A-Za-z]:\\|~/|file://""")


def keep(folder, content=None, *, name="figure", **provenance):
    known = {"seconds": 61.4, "seeds": [0, 1], "parameters": {"depth": 3}} | provenance
    return store(name, {"curve": [1.0, 2.0]} if content is None else content, **known, folder=folder)


def rounded(value):
    """What is left of a value in five digits."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.4e}") if math.isfinite(value) else None
    return value


# ---- there and back


def test_what_is_stored_is_loaded(tmp_path):
    path = keep(tmp_path, {"runs": [{"optimizer": "SGD", "loss": [0.5, 0.25]}], "count": 3, "text": "ä", "done": True})
    assert path == tmp_path / "figure.json"
    result = load("figure", folder=tmp_path)
    assert isinstance(result, Result)
    assert result.name == "figure"
    assert result.values == {
        "runs": [{"optimizer": "SGD", "loss": [0.5, 0.25]}],
        "count": 3,
        "text": "ä",
        "done": True,
    }
    assert result.provenance["seconds"] == 61
    assert result.provenance["seeds"] == [0, 1]
    assert result.provenance["parameters"] == {"depth": 3}


@modest
@given(values)
def test_all_that_json_knows_comes_back(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("results")
    keep(folder, content)
    assert load("figure", folder=folder).values == rounded(content)


@modest
@given(st.floats(-1e300, 1e300))
def test_numbers_keep_five_digits(tmp_path_factory, number):
    folder = tmp_path_factory.mktemp("results")
    keep(folder, {"x": number})
    kept = load("figure", folder=folder).values["x"]
    assert abs(kept - number) <= 5e-5 * abs(number) + 5e-324
    assert len(repr(kept).split("e")[0].strip("-").replace(".", "").strip("0")) <= 5


def test_five_digits_in_the_file(tmp_path):
    content = {"x": [math.pi, -math.e / 1e9, 1234567.0, 0.1, 0.0, 5, 123456789], "y": (1 / 3, [2 / 3])}
    text = keep(tmp_path, content).read_text(encoding="utf-8")
    assert '"x":[3.1416,-2.7183e-09,1234600.0,0.1,0.0,5,123456789],"y":[0.33333,[0.66667]]' in text
    assert " 3" not in text
    assert text.endswith("}\n")


def test_nan_and_infinity_are_null(tmp_path):
    path = keep(tmp_path, {"x": [math.nan, 1.0, math.inf], "y": -math.inf, "z": {"deep": [[np.float64("nan")]]}})
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert load("figure", folder=tmp_path).values == {"x": [None, 1.0, None], "y": None, "z": {"deep": [[None]]}}


def test_lists_of_numpy_and_torch_are_stored(tmp_path):
    curve = np.array([[1.0, np.nan], [1 / 3, 2.0]])
    keep(tmp_path, {"curve": curve.tolist(), "one": curve[1, 0], "tensor": torch.tensor([0.5]).tolist()})
    assert load("figure", folder=tmp_path).values == {"curve": [[1.0, None], [0.33333, 2.0]], "one": 0.33333} | {
        "tensor": [0.5]
    }


# ---- provenance


def test_the_provenance_says_what_computed_it(tmp_path):
    keep(tmp_path)
    p = load("figure", folder=tmp_path).provenance
    assert tuple(p) == PROVENANCE
    assert PROVENANCE == ("date", "device", "torch", "cuda", "seconds", "seeds", "parameters", "revision")
    assert abs(datetime.fromisoformat(p["date"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert p["torch"] == torch.__version__
    if not torch.cuda.is_available():
        assert p["cuda"] is None
        assert re.fullmatch(r"CPU \(.+, \d+ threads\)", p["device"])


def test_the_device_is_the_gpu_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    keep(tmp_path, seconds=3601)
    result = load("figure", folder=tmp_path)
    assert (result.provenance["device"], result.provenance["cuda"]) == ("A GPU", "12.4")
    assert f"A GPU, PyTorch {torch.__version__}, CUDA 12.4, 60 minutes" in result.note


@pytest.mark.parametrize(("changed", "expected"), [("", "abcdef0"), (" M vclib/training.py\n", "abcdef0-dirty")])
def test_the_revision_is_that_of_git(tmp_path, monkeypatch, changed, expected):
    def run(command, **options):
        assert command[:2] == ["git", "-C"]
        printed = {"rev-parse": "abcdef0\n", "status": changed}[command[3]]
        return results.subprocess.CompletedProcess(command, 0, stdout=printed)

    monkeypatch.setattr(results.subprocess, "run", run)
    keep(tmp_path)
    assert load("figure", folder=tmp_path).provenance["revision"] == expected


def test_a_long_run_notes_the_revision_that_it_was_started_with(tmp_path):
    keep(tmp_path, code="1234567")
    assert load("figure", folder=tmp_path).provenance["revision"] == "1234567"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), results.subprocess.CalledProcessError(128, "git")])
def test_without_git_the_revision_is_unknown(tmp_path, monkeypatch, error):
    def run(command, **options):
        raise error

    monkeypatch.setattr(results.subprocess, "run", run)
    keep(tmp_path)
    assert load("figure", folder=tmp_path).provenance["revision"] == "unknown"


def test_the_note_is_one_sentence_for_a_caption():
    known = {"date": "2026-11-23T07:00:00+00:00", "device": "CPU (x86_64, 2 threads)", "torch": "2.13.0", "cuda": None}
    result = Result("figure", known | {"seconds": 7530, "seeds": [0], "parameters": {}, "revision": "abcdef0"}, {})
    start = "Stored result of 2026-11-23: CPU (x86_64, 2 threads), PyTorch 2.13.0"
    assert result.note == f"{start}, 126 minutes, revision abcdef0."
    result.provenance["cuda"] = "12.4"
    assert result.note == f"{start}, CUDA 12.4, 126 minutes, revision abcdef0."


def test_the_values_are_not_printed():
    assert "12345" not in repr(Result("figure", {}, {"x": [12345]}))


# ---- what is missing, damaged or half written


def test_what_was_never_stored_is_none(tmp_path):
    keep(tmp_path)
    assert load("another", folder=tmp_path) is None
    assert load("figure", folder=tmp_path / "nowhere") is None
    assert load("no such figure") is None


DAMAGES = {
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "without its end": lambda raw: raw[:-2],
    "garbage": lambda raw: bytes(range(256)),
    "zeros": lambda raw: bytes(len(raw)),
    "a list": lambda raw: b"[1, 2]",
    "a number": lambda raw: b"5",
    "null": lambda raw: b"null",
    "no provenance": lambda raw: b'{"values": {}}',
    "a provenance that is none": lambda raw: b'{"provenance": null, "values": {}}',
    "no values": lambda raw: raw.replace(b'"values"', b'"valves"'),
    **{f"no {key}": lambda raw, key=key: raw.replace(f'"{key}"'.encode(), b'"else"') for key in PROVENANCE},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_raises_and_stays(tmp_path, name):
    path = keep(tmp_path)
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    content = path.read_bytes()
    sentence = f"The stored result {path} is damaged; restore it with git, or run it anew."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load("figure", folder=tmp_path)
    assert path.read_bytes() == content


def test_a_result_is_replaced_in_one_step(tmp_path, monkeypatch):
    keep(tmp_path, {"x": 1})
    before, replace = (tmp_path / "figure.json").read_bytes(), Path.replace

    def moving(new, path):
        assert path.read_bytes() == before
        assert json.loads(new.read_text(encoding="utf-8"))["values"] == {"x": 2}
        return replace(new, path)

    monkeypatch.setattr(Path, "replace", moving)
    keep(tmp_path, {"x": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["figure.json"]
    assert load("figure", folder=tmp_path).values == {"x": 2}


def test_what_cannot_be_stored_leaves_the_old_result(tmp_path):
    keep(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        keep(tmp_path, {"x": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["figure.json"]
    assert load("figure", folder=tmp_path).values == {"curve": [1.0, 2.0]}


def test_the_folder_is_made_and_names_may_have_dots(tmp_path):
    for name in ("figure-5.1", "figure-5.2"):
        keep(tmp_path / "a" / "b", {"x": name}, name=name)
    for name in ("figure-5.1", "figure-5.2"):
        assert load(name, folder=tmp_path / "a" / "b").values == {"x": name}
    assert len(list((tmp_path / "a" / "b").iterdir())) == 2


# ---- the project's own results


def test_results_are_in_the_book():
    assert results.FOLDER.parts[-2:] == ("book", "results") or results.FOLDER.name == "stored"


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_result_says_where_it_comes_from(path):
    result = load(path.stem)
    p = result.provenance
    assert result.values
    assert tuple(json.loads(path.read_text(encoding="utf-8"))["provenance"]) == PROVENANCE
    assert datetime.fromisoformat(p["date"]).tzinfo
    assert re.fullmatch(r"[0-9a-f]{7,40}", p["revision"]), p["revision"]
    assert p["device"]
    assert re.match(r"\d+\.\d+", p["torch"])
    assert p["seconds"] > 0
    assert p["seeds"] == sorted(set(p["seeds"])) != []
    assert p["parameters"]
    assert "fake" not in p["parameters"]
    assert result.note


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_result_is_strict_json_without_absolute_paths(path):
    text = path.read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    assert not ABSOLUTE.search(text)
    assert str(Path.home()) not in text
    assert not path.with_suffix(".new").exists()


@pytest.mark.parametrize("text", ['{"x":"/a/b"}', '"at /a/b"', r"C:\data", "~/book", "file:///x", "in /a/b"])
def test_an_absolute_path_would_be_found(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ['{"x":"1/2"}', "2026-11-23T07:00:00+00:00", "NVIDIA/CUDA", "book/results", "a: 1"])
def test_a_fraction_is_no_absolute_path(text):
    assert not ABSOLUTE.search(text)
