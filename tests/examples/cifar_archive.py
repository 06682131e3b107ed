"""Small archives in the format of the released ones: a gzipped tar of pickles as Python 2 wrote them."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np


def write_archive(path, classes, train=64, test=32, change=None):
    """An archive of `classes` 10 or 100 in which images of class 1 are brighter than those of class 0, and nothing else.

    change: called with the dict {member: bytes} before it is written
    """
    random = np.random.default_rng(0)
    if classes == 10:
        names = [f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)]
        sizes = [train // 5 + (number < train % 5) for number in range(5)]
        batches = {name: batch(random, size, b"labels") for name, size in zip(names, sizes, strict=True)}
        batches["cifar-10-batches-py/test_batch"] = batch(random, test, b"labels")
        batches["cifar-10-batches-py/batches.meta"] = {b"label_names": [b"class %d" % index for index in range(10)]}
    else:
        batches = {f"cifar-100-python/{name}": batch(random, size, b"fine_labels") for name, size in
                   (("train", train), ("test", test))}  # fmt: skip
        for content in batches.values():
            content[b"coarse_labels"] = [7] * len(content[b"fine_labels"])
        batches["cifar-100-python/meta"] = {
            b"fine_label_names": [b"class %d" % index for index in range(100)], b"coarse_label_names": [b"all"] * 20,
        }  # fmt: skip
    members = {name: python2_pickle(content) for name, content in batches.items()}
    if change:
        change(members)
    with gzip.open(path, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def batch(random, size, labels_key):
    labels = random.permutation(np.arange(size) % 2)
    pixels = random.integers(0, 128, (size, 3072)) + 100 * labels[:, None]
    return {
        b"batch_label": b"a batch",
        labels_key: [int(label) for label in labels],
        b"data": pixels.astype(np.uint8),
        b"filenames": [b"%d.png" % index for index in range(size)],
    }


class Python2Pickler(pickle._Pickler):
    """Protocol 2 with byte strings as Python 2 writes them; Python 3 would call a function for each."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
