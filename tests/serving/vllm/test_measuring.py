from __future__ import annotations

from types import SimpleNamespace

import pytest

from transformers_litelvlm.serving.vllm.measuring import _ratios, _run, figures, render


class ThreeSteps:
    """An engine whose answers have two tokens, the first after two steps."""

    def __init__(self) -> None:
        self.age: dict[str, int] = {}
        self.most = 0

    def add_request(self, name, request, params) -> None:
        self.age[name] = 0
        self.most = max(self.most, len(self.age))

    def step(self) -> list:
        found = []
        for name in list(self.age):
            self.age[name] += 1
            tokens = [[], [7], [7, 8]][self.age[name] - 1]
            output = SimpleNamespace(token_ids=tokens)
            finished = self.age[name] == 3
            found.append(
                SimpleNamespace(request_id=name, outputs=[output], prompt_token_ids=[1, 2], finished=finished)
            )
            if finished:
                del self.age[name]
        return found


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_so_many_requests_are_under_way(concurrency):
    engine = ThreeSteps()
    found = list(_run(engine, [{}] * 10, concurrency, None))
    assert len(found) == 10 and engine.most == min(concurrency, 10) and not engine.age
    assert all(waited > 0 and prompt_tokens == 2 for waited, prompt_tokens in found)


def test_ratios_are_of_the_same_concurrency():
    def point(budget, concurrency, seconds, tokens):
        measured = figures(budget, concurrency, seconds, 2 * seconds, [seconds / 4, seconds / 2], tokens)
        return {"pictures": "new pictures", **measured}

    points = [point(None, 1, 4, 600), point(None, 8, 8, 600), point(64, 1, 2, 100), point(64, 8, 2, 100)]
    one, eight = _ratios(points)
    assert (one["requests_per_second"], one["cpu_seconds"], one["first_token_p50"]) == (2, 2, 2)
    assert (eight["requests_per_second"], eight["cpu_seconds"], eight["keys_and_values"]) == (4, 4, 6)
    text = render({"checkpoint": "x", "bytes_per_token": 2048, "points": points, "ratios": [one, eight]})
    assert "2 KiB" in text and "4.00, 4.00" in text
