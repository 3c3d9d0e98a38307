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
from transformers_litelvlm.serving.vllm.requested import as_ours


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
    # Settings of requests -> the same for our model. Each of the first pictures is asked about with each of them.
    kinds = [
        ({}, {}),
        ({"budget": 12}, {"pruning_budget": 12}),
        (
            {"method": "divprune", "retention_ratio": 0.2, "method_options": {}},
            {"pruning_method": "divprune", "pruning_retention_ratio": 0.2},
        ),
    ]
    mixed = [(*each, settings) for each in asked[:4] for settings, _ in kinds[1:]]
    with serving(path, tmp_path, "--runner", "pooling", "--io-processor-plugin", "litelvlm_segmentation") as url:

        def ask(request):
            picture, sentences, *settings = request
            data = {"image": in_base64(picture), "sentences": sentences, **(settings[0] if settings else {})}
            return post(f"{url}/pooling", {"model": "litelvlm", "data": data})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [*asked, *mixed]))
        assert {status for status, _ in answers} == {200}, answers[0]
        status, answer = ask((*asked[0], {"budget": 99}))
        assert status == 400 and "larger budget" in answer["error"]["message"]
        status, answer = post(f"{url}/pooling", {"model": "litelvlm", "data": {"image": "?", "sentences": ["a"]}})
        assert status == 400 and "base64" in answer["error"]["message"]
    found = [answer["data"] for _, answer in answers]
    check_masks(path, PRUNING, asked, found[:20])
    for place, (_, keywords) in enumerate(kinds[1:]):
        check_masks(path, PRUNING, asked[:4], found[20 + place :: 2], **keywords)
    of_first = [json.dumps(each["masks"]) for each in (found[1], *found[22:24])]
    assert len(set(of_first)) == 3


@pytest.mark.timeout(900)
def test_chat(checkpoint, tmp_path):
    """The sentence comes from the prompt, or, where the server trusts requests, from `mm_processor_kwargs`."""
    path = checkpoint("talkative")
    model, processor = ours(path, PRUNING)
    scenes = [generate_scene("test", index) for index in range(4)]
    asked = [(s.image, f"Where is {e.sentence}?", {}) for s in scenes for e in s.expressions[:2]]
    asked += [(s.image, "What is it?", {"expressions": e.sentence}) for s in scenes for e in s.expressions[:2]]
    asked += [(s.image, "What is it?", {"pruning_budget": 12}) for s in scenes]
    asked += [(s.image, "What is it?", {"image_pruning_rate": 0.8, "image_pruning_method": "trim"}) for s in scenes]

    def content(picture, question, image_url=False):
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{in_base64(picture)}"}}
        image = url if image_url else {"type": "image", "image": Image.fromarray(picture)}
        return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]

    with serving(path, tmp_path, "--runner", "generate", "--trust-request-mm-kwargs") as url:

        def ask(request):
            picture, question, kwargs = request
            further = {"mm_processor_kwargs": kwargs} if kwargs else {}
            settings = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
            messages = content(picture, question, image_url=True)
            return post(
                f"{url}/v1/chat/completions", {"model": "litelvlm", "messages": messages, **settings, **further}
            )

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, asked))
        for wrong, message in [({"pruning_budget": 99}, "larger budget"), ({"pruning_bugdet": 9}, "pruning_budget")]:
            status, answer = ask((asked[0][0], "What is it?", wrong))
            assert status == 400 and message in answer["error"]["message"]
        assert ask(asked[-1])[0] == 200
    assert {status for status, _ in answers} == {200}, answers[0]
    found = [answer["choices"][0]["token_ids"] for _, answer in answers]
    expected = []
    own = model.config.pruning_config
    for picture, question, kwargs in asked:
        inputs = processor.apply_chat_template(
            content(picture, question),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"expressions": [[kwargs["expressions"]]]} if "expressions" in kwargs else {},
        )
        model.config.pruning_config = own
        model.config.set_pruning(**as_ours({k: v for k, v in kwargs.items() if k != "expressions"}))
        ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        expected.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({tuple(answer) for answer in expected}) > 8
    assert found == expected
