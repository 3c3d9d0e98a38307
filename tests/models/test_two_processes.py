"""Two processes that share the work choose the same visual tokens as one, with every method."""

import subprocess
import sys

import pytest

from tests.support.families import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("how", ["layers_shared", "weights_sharded"])
def test_two_processes_compute_what_one_does(how, family):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*torchrun, "tests.support.two_processes", how, family.name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    if "upstream cannot" in result.stdout:
        pytest.skip(result.stdout[:100])
    assert result.stdout.count("cases") == 2
