"""`vllm serve` with the plugin that pip installed: chat, and masks, eight requests at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.vllm_engines.masks import PRUNING, check_masks, in_base64, mask_requests
from tests.vllm_engines.text import NEW_TOKENS, ours
from transformers_litelvlm.data import generate_scene


def post(url: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def serving(path: str, folder, *options: str):
    """`vllm serve`, on a free port; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8", *options)
    overrides = json.dumps({"pruning_config": PRUNING})
    command = [os.path.join(os.path.dirname(sys.executable), "vllm"), "serve", path, "--port", str(port)]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [
                *command,
                "--host",
                "127.0.0.1",
                "--served-model-name",
                "litelvlm",
                "--hf-overrides",
                overrides,
                *options,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 400
            while True:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


@pytest.mark.timeout(900)
def test_masks(checkpoint, tmp_path):
    path, asked = checkpoint("bundled"), mask_requests(20)
    with serving(path, tmp_path, "--runner", "pooling", "--io-processor-plugin", "litelvlm_segmentation") as url:

        def ask(request):
            picture, sentences = request
            data = {"image": in_base64(picture), "sentences": sentences}
            return post(f"{url}/pooling", {"model": "litelvlm", "data": data})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, asked))
        assert {status for status, _ in answers} == {200}, answers[0]
        status, answer = post(f"{url}/pooling", {"model": "litelvlm", "data": {"image": "?", "sentences": ["a"]}})
        assert status == 400 and "base64" in answer["error"]["message"]
    check_masks(path, PRUNING, asked, [answer["data"] for _, answer in answers])


@pytest.mark.timeout(900)
def test_chat(checkpoint, tmp_path):
    """The sentence comes from the prompt, or, where the server trusts requests, from `mm_processor_kwargs`."""
    path = checkpoint("talkative")
    model, processor = ours(path, PRUNING)
    scenes = [generate_scene("test", index) for index in range(4)]
    asked = [(s.image, f"Where is {e.sentence}?", None) for s in scenes for e in s.expressions[:2]]
    asked += [(s.image, "What is it?", e.sentence) for s in scenes for e in s.expressions[:2]]

    def content(picture, question, image_url=False):
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(picture)}"}}
        image = url if image_url else {"type": "image", "image": Image.fromarray(picture)}
        return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]

    with serving(path, tmp_path, "--runner", "generate", "--trust-request-mm-kwargs") as url:

        def ask(request):
            picture, question, sentence = request
            further = {"mm_processor_kwargs": {"expressions": sentence}} if sentence else {}
            settings = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            messages = content(picture, question, image_url=True)
            return post(
                f"{url}/v1/chat/completions", {"model": "litelvlm", "messages": messages, **settings, **further}
            )

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, asked))
    assert {status for status, _ in answers} == {200}, answers[0]
    found = [answer["choices"][0]["token_ids"] for _, answer in answers]
    expected = []
    for picture, question, sentence in asked:
        inputs = processor.apply_chat_template(
            content(picture, question),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"expressions": [[sentence]]} if sentence else {},
        )
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        expected.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({tuple(answer) for answer in expected}) > 8
    assert found == expected
