"""The load on the HTTP service: that both servers answer everything, and what is said about it."""

import json

import pytest


@pytest.mark.slow
def test_command(script, capsys):
    load = script("serve_load")
    arguments = ["--clients", "8", "--requests", "40", "--pictures", "4"]
    assert load.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["one by one"]["mean_batch"] == 1 < result["batched"]["mean_batch"] <= 8
    assert result["one by one"]["repeated"] == 0 and result["ratio"] > 0
    for name in load.SERVERS:
        assert 0 < result[name]["p50_ms"] <= result[name]["p95_ms"] <= result[name]["p99_ms"]
    assert "requests per second" in load.describe(result)
