"""The second sentence about a picture: that both are measured, and that the second one finds the picture encoded."""

import json

import pytest


def test_command(script, capsys):
    second = script("second_sentence")
    assert second.main(["tiny", "--pairs", "2", "--budget", "9", "--dtype", "float32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["ratio"] == pytest.approx(1 / result["speedup"])
    before, after = (stages["encode"] for stages in result["stages"])
    assert 0 < after < before and "the second is" in second.describe(result)
