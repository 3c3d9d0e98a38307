"""Files of weights whose content depends on the reader; whole checkpoints of them are in test_hostile_weights.py."""

import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import attacks
from transformers_litelvlm.utils.weight_files import LARGEST_HEADER, check_weights


MANY = range(300_000)
WEIGHTS = {"a": torch.ones(2, 3), "b": torch.arange(4.0)}


def test_what_their_libraries_write_is_accepted(tmp_path):
    save_file(WEIGHTS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    torch.save(WEIGHTS, tmp_path / "x.bin")
    torch.save(WEIGHTS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("x.safetensors", "x.bin", "old.bin"):
        check_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (attacks.SAFETENSORS["a name twice, and two meanings"](WEIGHTS), "the name 'a' twice in its header"),
        (b"\xff" * 8, f"a header of {2**64 - 1} bytes, more than {LARGEST_HEADER}"),
        # Of many names the last one: looking each up in all others would take minutes.
        (
            attacks.packed(b'{"x": 0' + b"".join(b', "%d": 0' % n for n in [*MANY, 299_999]) + b"}", b""),
            "'299999' twice",
        ),
        (attacks.packed(b'{"a":' * 100_000, b""), "nested too deep"),
        (attacks.packed(b"{", b""), "Expecting"),
    ],
)
def test_headers(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_weights(path)


def test_safetensors_takes_the_last_of_two(tmp_path):
    """Why a name that stands twice is refused: when this changes upstream, so may that."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(attacks.SAFETENSORS["a name twice, and two meanings"](WEIGHTS))
    assert load_file(path)["a"].dtype == torch.float32


def test_a_compressed_archive(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(attacks.compressed(WEIGHTS))
    # As transformers and `litelvlm convert` read it.
    assert not torch.equal(torch.load(path, weights_only=True, mmap=True)["a"], WEIGHTS["a"])
    with pytest.raises(ValueError, match="a compressed archive, which torch never writes"):
        check_weights(path)


def test_a_header_of_many_tensors_is_not_kept(tmp_path):
    """To make a dictionary of each took 79 MiB here, and the garbage collector three times as long as the rest."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(attacks.SAFETENSORS["100,000 tensors on the same bytes"](WEIGHTS))
    tracemalloc.start()
    try:
        check_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 6 * path.stat().st_size
    finally:
        tracemalloc.stop()
