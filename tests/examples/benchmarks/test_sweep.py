"""The runs of a sweep are those made one by one."""

import pytest


@pytest.mark.slow
def test_command(script, capsys):
    assert script("sweep").main(["--images", "1", "--in-process"]) == 0
    printed = capsys.readouterr().out
    assert "16 runs on 1 scenes" in printed and "records identical" in printed
