"""The released archives of CIFAR-10 and CIFAR-100 ("python version"), read without unpacking and without trust.

An archive is a tar of pickles. They are loaded after the checksum, and by an unpickler that makes NumPy arrays, and
nothing else that is not a plain value.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class ArchiveError(ValueError):
    """What is wrong with an archive, in one line."""


class Images(NamedTuple):
    """pixels: (N, 3, 32, 32) uint8. labels: (N,) int64"""

    pixels: Tensor
    labels: Tensor


class Cifar(NamedTuple):
    """A data set by its name, with the names of its classes."""

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]


class _Release(NamedTuple):
    """Where things are in an archive, and the MD5 that SOURCE states for it."""

    name: str
    file: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: bytes
    label_names: bytes


_RELEASES = (
    _Release(
        "CIFAR-10",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    _Release(
        "CIFAR-100",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        ("train",),
        "test",
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
)


def read_archive(path: Path, checksum: bool = True) -> Cifar:
    """The data set in the archive at `path`; which of the two it is, its content says.

    checksum: refuse every file but the two released ones. Without it an archive of one's own in the same format is read
    Raises ArchiveError for a missing file, one that is not the released one, or one that cannot be read.
    """
    if not path.is_file():
        names = " and ".join(release.file for release in _RELEASES)
        raise ArchiveError(f"{path} is not a file; the archives {names} are to be had at {SOURCE}")
    content = path.read_bytes()
    if checksum:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 not in [release.md5 for release in _RELEASES]:
            accepted = ", ".join(f"{release.md5} ({release.file})" for release in _RELEASES)
            raise ArchiveError(
                f"{path} is damaged or another file: its MD5 is {md5}, accepted are {accepted}; "
                "--no-checksum reads an archive of your own"
            )
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            return _read(archive)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError, pickle.UnpicklingError, KeyError) as error:
        raise ArchiveError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _read(archive: tarfile.TarFile) -> Cifar:
    members = set(archive.getnames())
    release = next((r for r in _RELEASES if f"{r.folder}/{r.meta}" in members), None)
    if release is None:
        wanted = " or ".join(f"{r.folder}/{r.meta}" for r in _RELEASES)
        raise ArchiveError(f"holds no {wanted}: not an archive of CIFAR-10 or CIFAR-100, python version")

    def member(name: str) -> dict:
        file = archive.extractfile(f"{release.folder}/{name}")
        if file is None:
            raise ArchiveError(f"{release.folder}/{name} is not a file")
        loaded = _Unpickler(file, encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ArchiveError(f"{release.folder}/{name} holds a {type(loaded).__name__}, not a dict")
        return loaded

    classes = tuple(name.decode() for name in member(release.meta)[release.label_names])
    batches = [_images(member(name), release.labels, len(classes), name) for name in release.train]
    train = Images(torch.cat([batch.pixels for batch in batches]), torch.cat([batch.labels for batch in batches]))
    return Cifar(
        release.name, train, _images(member(release.test), release.labels, len(classes), release.test), classes
    )


def _images(batch: dict, labels_key: bytes, classes: int, name: str) -> Images:
    pixels, labels = batch[b"data"], batch[labels_key]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
        raise ArchiveError(f"{name}: data is not a uint8 array of shape ({len(labels)}, 3072), one row a label")
    labels = torch.tensor(labels, dtype=torch.int64)
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ArchiveError(f"{name}: accepted are labels from 0 to {classes - 1}, at least one")
    return Images(torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32), labels)


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Loads plain values and NumPy arrays. The released pickles are Python 2's and name NumPy's modules of that time."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"a pickle in it asks for {module}.{name}") from None
