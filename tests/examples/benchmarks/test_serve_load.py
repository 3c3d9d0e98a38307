"""The load on the HTTP service: that both servers answer everything rightly, and what is said about it."""

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
        assert result[name]["wrong"] == 0
        assert 0 < result[name]["p50_ms"] <= result[name]["p95_ms"] <= result[name]["p99_ms"]
    assert "requests per second" in load.describe(result)
    assert "0 answers differ from the model alone" in load.describe(result)


def test_an_answer_that_differs_is_noticed(script):
    asked = script("serve_load").Asked(form={}, masks=["a"], scores=[0.5], kept=[[1, 2]])

    def answer(counts="a", score=0.5, kept=(1, 2)):
        return {"masks": [{"mask": {"counts": counts}, "score": score}], "retained_indices": [list(kept)]}

    assert asked.is_answered_by(answer()) and asked.is_answered_by(answer(score=0.500001))
    for other in (answer(counts="b"), answer(score=0.5001), answer(kept=(2, 1))):
        assert not asked.is_answered_by(other)
