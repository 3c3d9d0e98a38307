"""Requests per second and times of `litelvlm serve` under load, with and without calls that requests share.

    python examples/benchmarks/serve_load.py --clients 32 --requests 2000 --threads 1

The server runs in this process, without a network: what is measured is the work for a request, HTTP's parsing of a
form included. Both servers get the same requests in turn, a fifth of them at a time, so that other work on the machine
meets both. Every picture is asked about several times, as its encoding is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from huggingface_hub.utils import httpx
from PIL import Image
from reporting import run_and_report

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.benchmark.timing import machine_line, measured_on
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter
from transformers_litelvlm.serving.service import Service


ROUNDS = 5
SERVERS = {"batched": 8, "one by one": 1}  # requests in a call of the model


def run_load(clients: int = 32, requests: int = 2000, pictures: int = 32, cache_mb: int = 512) -> dict[str, Any]:
    """Measure both servers.

    Args:
        clients: that each send a request as soon as the last one is answered.
        requests: for each server.
        pictures: different ones.
        cache_mb: of encoded pictures; 0 encodes for every request.

    Returns:
        For each server `p50_ms`, `p95_ms`, `p99_ms`, `requests_per_second`, `mean_batch`, `repeated`, the share of
        requests that were answered again alone; and `ratio`, the time that the batched one takes relative to the
        other.
    """
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")
    model, processor = load_for_segmentation(DEFAULT_CHECKPOINT, config)
    forms = _forms(pictures)
    services, taken, seconds = {}, {}, dict.fromkeys(SERVERS, 0.0)
    for name, max_batch in SERVERS.items():
        limits = Limits(max_batch=max_batch, max_queue=2 * clients, cache_mb=cache_mb)
        services[name], taken[name] = Service(Segmenter(model, processor, limits), limits), []
        asyncio.run(_ask(services[name], forms, 1, pictures))  # warms up
    for part in range(ROUNDS):
        for name in SERVERS if part % 2 else reversed(SERVERS):
            start = time.perf_counter()
            taken[name] += asyncio.run(_ask(services[name], forms, clients, max(1, requests // ROUNDS)))
            seconds[name] += time.perf_counter() - start
    for service in services.values():
        service.close()
    result: dict[str, Any] = {"clients": clients, "requests": requests, "pictures": pictures}
    result |= measured_on(str(model.device))
    for name, answers in taken.items():
        times, batches = zip(*answers, strict=True)
        result[name] = {
            **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
            "requests_per_second": len(answers) / seconds[name],
            "mean_batch": float(np.mean(batches)),
            "repeated": services[name].segmenter.repeated / (len(answers) + pictures),
        }
    return {**result, "ratio": seconds["batched"] / seconds["one by one"]}


def _forms(pictures: int) -> list[dict[str, Any]]:
    """A request for each sentence about each picture, as keywords of the client."""
    forms = []
    for index in range(pictures):
        scene, file = generate_scene("test", index), io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        forms += [
            {"files": {"image": ("a.png", file.getvalue())}, "data": {"sentences": [each.sentence]}}
            for each in scene.expressions[:3]
        ]
    return forms


async def _ask(service: Service, forms: list[dict[str, Any]], clients: int, requests: int) -> list[tuple[float, int]]:
    """Milliseconds and size of the batch of each request."""
    answered: list[tuple[float, int]] = []
    left = itertools.islice(itertools.cycle(forms), requests)
    transport = httpx.ASGITransport(create_app(service))

    async def ask(client: Any) -> None:
        for form in left:
            start = time.perf_counter()
            answer = await client.post("/v1/segment", **form)
            answer.raise_for_status()
            answered.append(((time.perf_counter() - start) * 1000, answer.json()["batch_size"]))

    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=600) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return answered


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{result['requests']} requests of {result['clients']} clients about {result['pictures']} pictures"]
    for name in SERVERS:
        of_server = result[name]
        lines.append(
            f"{name}: p50 {of_server['p50_ms']:.0f} ms, p95 {of_server['p95_ms']:.0f} ms, p99 "
            f"{of_server['p99_ms']:.0f} ms, {of_server['requests_per_second']:.1f} requests per second, "
            f"{of_server['mean_batch']:.1f} in a call, {of_server['repeated']:.1%} answered again alone"
        )
    return "\n".join([*lines, f"ratio of the times: {result['ratio']:.2f}", machine_line(result)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000, help="for each of both servers")
    parser.add_argument("--pictures", type=int, default=32, help="different ones")
    parser.add_argument("--cache-mb", type=int, default=512, help="of encoded pictures; 0 keeps none")
    return run_and_report(parser, run_load, describe, limit=1.0, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
