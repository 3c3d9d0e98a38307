"""How fast vLLM answers with pruned visual tokens, and without: for `litelvlm benchmark --engine vllm`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Load:
    """What is asked of each engine."""

    concurrency: Sequence[int] = (1, 8, 32)  # requests under way at a time, each value in turn
    requests: int = 16  # for each of them; at least twice as many as are under way
    new_tokens: int = 8  # of an answer
    side: int = 336  # of the pictures, in pixels
    # about each of them; a number is added, so that no two are alike
    question: str = "Where is the red mug, number {}?"


def figures(
    budget: int | None,
    concurrency: int,
    seconds: float,
    cpu_seconds: float,
    first_tokens: Sequence[float],
    prompt_tokens: int,
) -> dict[str, Any]:
    """What was measured of one setting at one concurrency, for a report. Times are in seconds."""
    count = len(first_tokens)
    p50, p99 = np.percentile(first_tokens, [50, 99]).tolist()
    return {
        "budget": budget,
        "concurrency": concurrency,
        "requests": count,
        "requests_per_second": count / seconds,
        "first_token_p50": p50,
        "first_token_p99": p99,
        "cpu_seconds_per_request": cpu_seconds / count,
        "prompt_tokens": prompt_tokens,
    }


def run_engines(checkpoint: str, budgets: Sequence[int], load: Load, says: Callable[[str], None]) -> dict[str, Any]:
    """Measure the unpruned model, then each budget, one engine after the other, with the same requests.

    Args:
        checkpoint: one of ours, or a stock one.
        says: is told what happens next.

    Returns:
        `points`, and in `ratios` how many times better each is than the unpruned model at the same concurrency.
    """
    points: list[dict[str, Any]] = []
    memory: dict[str, int] = {}
    for budget in (None, *budgets):
        says(f"starting vLLM, {'unpruned' if budget is None else f'budget {budget}'}")
        engine = _start(checkpoint, budget, load)
        memory = {"bytes_per_token": _bytes_per_token(engine.llm_engine.vllm_config)}
        for name, repeats in [("new pictures", False), ("known pictures", True)]:
            for concurrency in load.concurrency if not repeats else load.concurrency[:1]:
                says(f"{name}, {concurrency} at a time")
                point = _measure(engine.llm_engine, budget, concurrency, load, repeats)
                points.append({"pictures": name, **point})
        del engine
        gc.collect()
    return {"checkpoint": checkpoint, "points": points, "ratios": list(_ratios(points)), **memory}


def _start(checkpoint: str, budget: int | None, load: Load) -> Any:
    from vllm import LLM

    return LLM(
        checkpoint,
        runner="generate",
        dtype="auto" if torch.cuda.is_available() else "float32",
        enforce_eager=not torch.cuda.is_available(),
        max_num_seqs=max(load.concurrency),
        seed=0,
        # Every request is computed as a whole.
        enable_prefix_caching=False,
        hf_overrides={"pruning_budget": budget, "pruning_retention_ratio": None},
    )


def _measure(engine: Any, budget: int | None, concurrency: int, load: Load, repeats: bool) -> dict[str, Any]:
    """Keep `concurrency` requests under way; a new one starts as soon as one is finished."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=load.new_tokens, ignore_eos=True)
    count = max(load.requests, 2 * concurrency)
    # One before, for what happens once. Where the pictures are to be known, it is the one that is asked about.
    list(_run(engine, _requests(engine, load, [0]), 1, params))
    asked = _requests(engine, load, [0] * count if repeats else range(1, count + 1), first=1000 * concurrency)
    start, cpu = time.perf_counter(), time.process_time()
    waited, prompt_tokens = zip(*_run(engine, asked, concurrency, params))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return figures(budget, concurrency, seconds, cpu_seconds, waited, prompt_tokens[-1])


def _requests(engine: Any, load: Load, numbers: Sequence[int], first: int = 0) -> list[Any]:
    found = []
    tokenizer, token = engine.get_tokenizer(), engine.model_config.hf_config.image_token_id
    for number in numbers:
        seed = 0 if number == 0 else first + number
        pixels = np.random.default_rng(seed).integers(0, 255, (load.side, load.side, 3), dtype=np.uint8)
        ids = [token, *tokenizer.encode(load.question.format(seed), add_special_tokens=False)]
        found.append({"prompt_token_ids": ids, "multi_modal_data": {"image": Image.fromarray(pixels)}})
    return found


def _run(engine: Any, asked: list[Any], concurrency: int, params: Any) -> Iterator[tuple[float, int]]:
    """For every request how long its first token took, and how many tokens its prompt had."""
    waiting = list(enumerate(asked))
    started: dict[str, float] = {}
    while waiting or started:
        while waiting and len(started) < concurrency:
            number, request = waiting.pop(0)
            name = f"{id(asked)}-{number}"
            started[name] = time.perf_counter()
            engine.add_request(name, request, params)
        for output in engine.step():
            is_first = started[output.request_id] > 0
            if is_first and output.outputs[0].token_ids:
                yield time.perf_counter() - started[output.request_id], len(output.prompt_token_ids)
                started[output.request_id] = 0.0
            if output.finished:
                del started[output.request_id]


def _ratios(points: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    unpruned = {(each["pictures"], each["concurrency"]): each for each in points if each["budget"] is None}
    for point in points:
        if point["budget"] is None:
            continue
        base = unpruned[point["pictures"], point["concurrency"]]
        yield {
            **{name: point[name] for name in ("pictures", "budget", "concurrency")},
            "requests_per_second": point["requests_per_second"] / base["requests_per_second"],
            "cpu_seconds": base["cpu_seconds_per_request"] / point["cpu_seconds_per_request"],
            "first_token_p50": base["first_token_p50"] / point["first_token_p50"],
            "first_token_p99": base["first_token_p99"] / point["first_token_p99"],
            "keys_and_values": base["prompt_tokens"] / point["prompt_tokens"],
        }


def _bytes_per_token(vllm_config: Any) -> int:
    """Keys and values of a token in all layers."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    heads, layers = model.get_num_kv_heads(parallel), model.get_num_layers(parallel)
    return 2 * layers * heads * model.get_head_size() * torch.empty(0, dtype=model.dtype).element_size()


def render(result: dict[str, Any]) -> str:
    """The result as tables."""
    lines = [
        f"{result['checkpoint']}: {result['bytes_per_token'] / 1024:.0f} KiB of keys and values per token",
        "",
        "pictures        budget  at a time  requests/s  first token p50, p99 (s)  CPU s/request  prompt  times better"
        " (requests/s, CPU)",
    ]
    ratios = {(each["pictures"], each["budget"], each["concurrency"]): each for each in result["ratios"]}
    for point in result["points"]:
        ratio = ratios.get((point["pictures"], point["budget"], point["concurrency"]))
        budget = "off" if point["budget"] is None else point["budget"]
        better = "" if ratio is None else f"{ratio['requests_per_second']:.2f}, {ratio['cpu_seconds']:.2f}"
        lines.append(
            f"{point['pictures']:<15} {budget!s:>6} {point['concurrency']:>10} {point['requests_per_second']:>11.3f}"
            f" {point['first_token_p50']:>17.2f}, {point['first_token_p99']:<5.2f}"
            f" {point['cpu_seconds_per_request']:>14.3f} {point['prompt_tokens']:>7}  {better}"
        )
    return "\n".join(lines)
