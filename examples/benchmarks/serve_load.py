"""`litelvlm serve` under load: is every answer right, how many are there per second, and what do shared calls bring?

    python examples/benchmarks/serve_load.py --clients 32 --requests 2000 --threads 1

Two servers run as processes and answer over HTTP: one with calls that requests share, one with `--max-batch 1`. Both
get the same requests in turn, a fifth of them at a time, so that other work on the machine meets both. The requests
mix pictures of different sizes, one to three sentences, and settings. Each picture is asked about several times, as
its encoding is kept. Every answer is compared with that of the model alone, which this process computes first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from huggingface_hub.utils import httpx
from PIL import Image
from reporting import run_and_report

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.benchmark.timing import machine_line, measured_on
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.serving.requests import SETTINGS as KEYWORDS


ROUNDS = 5
SERVERS = {"batched": 16, "one by one": 1}  # requests in a call of the model
SETTINGS: list[dict[str, Any]] = [
    {},
    {"preset": "fast"},
    {"budget": 48},
    {"method": "vispruner", "budget": 20},
    {"method": "random", "budget": 30, "method_options": {"seed": 3}},
    {"budget": None, "retention_ratio": None},
    {"preset": "faithful", "budget": 24},
    {"method": "divprune", "retention_ratio": 0.25},
    {"method": "tome", "retention_ratio": 0.5},
    {"method": "fastv", "budget": 40, "method_options": {"layer": 1}},
]
# Of scores, which come from logits that differ in their last bits.
TOLERANCE = 1e-5


@dataclass
class Asked:
    """A request, and its answer alone.

    Attributes:
        form: keywords of the client.
        masks: run lengths.
        scores: of the masks.
        kept: visual tokens of each dialogue.
    """

    form: dict[str, Any]
    masks: list[str]
    scores: list[float]
    kept: list[list[int]]

    def is_answered_by(self, answer: dict[str, Any]) -> bool:
        """Whether masks and kept tokens are the same, and scores but for the last digits."""
        masks = [each["mask"]["counts"] for each in answer["masks"]]
        scores = [each["score"] for each in answer["masks"]]
        is_same = masks == self.masks and answer["retained_indices"] == self.kept
        return is_same and np.allclose(scores, self.scores, rtol=0, atol=TOLERANCE)


def run_load(
    clients: int = 32,
    requests: int = 2000,
    pictures: int = 32,
    settings: int = len(SETTINGS),
    cache_mb: int = 512,
) -> dict[str, Any]:
    """Measure both servers.

    Args:
        clients: that each send a request as soon as the last one is answered.
        requests: for each server.
        pictures: different ones.
        settings: different ones, the first of [`SETTINGS`].
        cache_mb: of encoded pictures; 0 encodes for every request.

    Returns:
        For each server `p50_ms`, `p95_ms`, `p99_ms`, `requests_per_second`, `mean_batch`, `wrong`, the answers that
        are not those of the model alone, `repeated`, the share of requests that were answered again alone, and
        `resident_mb`, the memory of the process before the requests and after each fifth of them; and `ratio`, the
        time that the batched one takes relative to the other.
    """
    asked = asked_alone(pictures, SETTINGS[:settings], min(requests, 20 * pictures))
    order = random.Random(0).choices(range(len(asked)), k=requests)
    taken: dict[str, list[tuple[float, int, bool]]] = {name: [] for name in SERVERS}
    seconds, repeated = dict.fromkeys(SERVERS, 0.0), {}
    resident: dict[str, list[int]] = {name: [] for name in SERVERS}
    with contextlib.ExitStack() as running:
        servers = {
            name: running.enter_context(
                server("--max-batch", batch, "--max-queue", 2 * clients, "--cache-mb", cache_mb)
            )
            for name, batch in SERVERS.items()
        }
        for name, (url, process) in servers.items():
            asyncio.run(_ask(url, asked[:pictures], 1))  # warms up
            resident[name].append(process.memory_info().rss // 2**20)
        for part in range(ROUNDS):
            wanted = [asked[place] for place in order[part::ROUNDS]]
            for name in SERVERS if part % 2 else reversed(SERVERS):
                url, process = servers[name]
                start = time.perf_counter()
                taken[name] += asyncio.run(_ask(url, wanted, clients))
                seconds[name] += time.perf_counter() - start
                resident[name].append(process.memory_info().rss // 2**20)
                wrong = sum(not is_right for _, _, is_right in taken[name])
                print(f"{name}: {len(taken[name])} answers, {wrong} differ", file=sys.stderr, flush=True)
        for name, (url, _) in servers.items():
            metrics = httpx.get(f"{url}/metrics").text
            repeated[name] = float(re.findall(r"^litelvlm_repeated ([\d.]+)$", metrics, re.MULTILINE)[0])
    result: dict[str, Any] = {"clients": clients, "requests": requests, "pictures": pictures, "settings": settings}
    result |= measured_on("cpu")
    for name, answers in taken.items():
        times, batches, are_right = zip(*answers, strict=True)
        result[name] = {
            **{f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 95, 99)},
            "requests_per_second": len(answers) / seconds[name],
            "mean_batch": float(np.mean(batches)),
            "wrong": are_right.count(False),
            "repeated": repeated[name] / len(answers),
            "resident_mb": resident[name],
        }
    return {**result, "ratio": seconds["batched"] / seconds["one by one"]}


@contextlib.contextmanager
def server(*options: Any) -> Iterator[tuple[str, psutil.Process]]:
    """`litelvlm serve` with the bundled model and the threads of this process; gives its address and its process."""
    words = [sys.executable, "-m", "transformers_litelvlm_command", "serve", "--port", "0", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            said: list[str] = []
            for line in process.stderr or ():
                said.append(line)
                if found := re.search(r"serving .* at (http://[\d.]+:\d+)", line):
                    break
            else:
                raise RuntimeError(f"The server did not start: {''.join(said)}")
            with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
                client.get(f"{found[1]}/health").raise_for_status()
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


@torch.inference_mode()
def asked_alone(pictures: int, settings: Sequence[dict[str, Any]], count: int) -> list[Asked]:
    """Different requests, each with the answer of the model alone. The first ones are about each picture once."""
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")  # as the command does
    model, processor = load_for_segmentation(DEFAULT_CHECKPOINT, config)
    rng, scenes = random.Random(0), [_picture_and_sentences(index) for index in range(pictures)]
    asked = []
    for place in range(count):
        picture, known = scenes[place % pictures]
        sentences, own = rng.sample(known, rng.randint(1, 3)), rng.choice(settings)
        pruning = change_pruning(config.pruning_config, {KEYWORDS[name]: value for name, value in own.items()})
        inputs = processor.segmentation_inputs([picture], [sentences])
        output = model.segment(**inputs, pruning_config=pruning)
        kept, (_, rows, columns) = output.retained_indices, processor.visual_token_grids(inputs)[0]
        asked.append(
            Asked(
                form={
                    "files": {"image": ("a.png", _png(picture))},
                    "data": {
                        "sentences": sentences,
                        **{n: v if isinstance(v, str) else json.dumps(v) for n, v in own.items()},
                    },
                },
                masks=[encode_mask(mask)["counts"] for mask in output.masks[0].numpy()],
                scores=output.scores[0].tolist(),
                kept=[list(range(rows * columns))] if kept is None else [row.tolist() for row in kept],
            )
        )
    return asked


def _picture_and_sentences(index: int) -> tuple[Image.Image, list[str]]:
    scene = generate_scene("test", index)
    picture, sentences = Image.fromarray(scene.image), [each.sentence for each in scene.expressions]
    size = (picture.width + 24 * (index % 5), picture.height + 36 * (index % 3))
    return picture.resize(size), (sentences + ["the star", "the largest object", "it"])[:4]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def _ask(url: str, wanted: Sequence[Asked], clients: int) -> list[tuple[float, int, bool]]:
    """Milliseconds, size of the batch, and whether the answer is right, of each request."""
    answered, left = [], iter(wanted)

    async def ask(client: Any) -> None:
        for each in left:
            start = time.perf_counter()
            answer = await client.post(f"{url}/v1/segment", **each.form)
            took = (time.perf_counter() - start) * 1000
            body = answer.raise_for_status().json()
            answered.append((took, body["batch_size"], each.is_answered_by(body)))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return answered


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['requests']} requests of {result['clients']} clients about {result['pictures']} pictures with "
        f"{result['settings']} settings"
    ]
    for name in SERVERS:
        of_server = result[name]
        lines.append(
            f"{name}: p50 {of_server['p50_ms']:.0f} ms, p95 {of_server['p95_ms']:.0f} ms, p99 "
            f"{of_server['p99_ms']:.0f} ms, {of_server['requests_per_second']:.1f} requests per second, "
            f"{of_server['mean_batch']:.1f} in a call, {of_server['repeated']:.1%} answered again alone, "
            f"{of_server['wrong']} answers differ from the model alone, memory {of_server['resident_mb']} MB"
        )
    return "\n".join([*lines, f"ratio of the times: {result['ratio']:.2f}", machine_line(result)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000, help="for each of both servers")
    parser.add_argument("--pictures", type=int, default=32, help="different ones")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="different ones (default: %(default)s)")
    parser.add_argument("--cache-mb", type=int, default=512, help="of encoded pictures; 0 keeps none")
    return run_and_report(parser, run_load, describe, limit=1.0, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
