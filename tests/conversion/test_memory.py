"""Memory: the largest file of the source and a little, whatever the size of the checkpoint."""

import pytest

from tests.support.conversion_memory import measure


# One tensor, what torch and safetensors need for reading and writing, and the noise of the allocator.
ALLOWANCE = 48_000_000


@pytest.mark.slow
def test_peak_memory_at_two_sizes(tmp_path):
    results = [measure(tmp_path / "work", size, "float16") for size in (128_000_000, 384_000_000)]
    for result in results:
        grown = result["peak"] - result["before"]
        print(f"source {result['source']:,} bytes, largest file {result['largest_file']:,}, memory grew {grown:,}")
        assert result["written"] > 0.9 * result["source"]
        assert grown <= result["largest_file"] + ALLOWANCE
