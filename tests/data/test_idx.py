import gzip

import numpy as np
import pytest

from adder.data.idx import idx_files, read_idx
from adder.errors import DamagedFile, UsageError

from .sources import IDX_TYPES, idx_bytes, write_images


@pytest.mark.parametrize("kind", IDX_TYPES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (1, 2, 2, 3)])
def test_every_type_and_shape_is_read(tmp_path, kind, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    path = tmp_path / "x-ubyte"
    path.write_bytes(idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert (read == array).all()


def test_through_gzip(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    assert (read_idx(path) == array).all()


def test_every_cut_and_any_byte_too_many_is_found(tmp_path):
    whole = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))
    for name, pack in (("x", bytes), ("x.gz", gzip.compress)):
        path = tmp_path / name
        for data in [*(whole[:n] for n in range(len(whole))), whole + b"\0"]:
            path.write_bytes(pack(data))
            with pytest.raises(DamagedFile, match=f"{name} is"):
                read_idx(path)
        packed = pack(whole)
        for length in range(len(packed)):
            path.write_bytes(packed[:length])
            with pytest.raises(DamagedFile, match=f"{name} is"):
                read_idx(path)


def test_a_flipped_bit_in_gzip_is_found(tmp_path):
    array = np.arange(200, dtype=np.uint8).reshape(2, 100)
    path = tmp_path / "x.gz"
    packed = gzip.compress(idx_bytes(array), mtime=0)
    for place in range(10, len(packed), 7):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :])
        with pytest.raises(DamagedFile, match="is damaged|is no idx file"):
            read_idx(path)


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3)
    with pytest.raises(UsageError, match="x takes .* GiB of memory, and 1.0 GiB are free"):
        read_idx(path, memory=2**30)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no file or folder .*x"):
        read_idx(tmp_path / "x")


def test_files_of_a_folder(tmp_path):
    assert idx_files(tmp_path) is None
    found = idx_files(write_images(tmp_path / "a"))
    assert sorted(found) == ["test-images", "test-labels", "train-images", "train-labels"]
    assert "test-images" not in idx_files(write_images(tmp_path / "b", test=0, packed=False))


def test_lacking_and_double_files_are_named(tmp_path):
    folder = write_images(tmp_path / "a")
    (folder / "train-images-idx3-ubyte").touch()
    with pytest.raises(UsageError, match="two files of train images"):
        idx_files(folder)
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match="lacks the train labels"):
        idx_files(folder)
