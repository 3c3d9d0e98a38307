"""A request that waits: the queue is bounded, who goes away costs nothing, and a stop finishes what was begun."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading

import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from tests.support.http_clients import client_of, form
from transformers_litelvlm.serving import pictures
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter
from transformers_litelvlm.serving.server import bind, make_server


PICTURE = Image.new("RGB", (40, 30), "red")


class Held(Segmenter):
    """Answers when it is let go."""

    def __init__(self, model, processor, limits):
        super().__init__(model, processor, limits)
        self.began, self.go, self.answered = threading.Event(), threading.Event(), []

    def answer(self, jobs):
        self.began.set()
        assert self.go.wait(20)
        self.answered += [job.sentences for job in jobs]
        return super().answer(jobs)


@pytest.fixture
def held(bundled):
    segmenter = Held(*bundled, Limits())
    yield segmenter
    segmenter.go.set()


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


def lines_of(caplog):
    """What the service logged."""
    ours = (record for record in caplog.records if record.name.startswith("transformers_litelvlm.serving"))
    return (json.loads(record.message) for record in ours)


def metric(service, name):
    found = re.search(rf"^litelvlm_{name} ([\d.]+)$", service.metrics.text().decode(), re.MULTILINE)
    return float(found[1])


def test_a_full_queue_and_a_stop_refuse_what_is_new(held, start_service):
    service = start_service(held, max_queue=2, max_batch=1)

    async def ask():
        async with client_of(service) as client:
            first = [asyncio.ensure_future(client.post("/v1/segment", **form(PICTURE, [s]))) for s in ("one", "two")]
            await until(lambda: held.began.is_set() and len(service._batcher) == 1)
            assert metric(service, "waiting") == 1 and metric(service, "inside") == 2
            full = await client.post("/v1/segment", **form(PICTURE, ["three"]))
            assert (await client.get("/health")).status_code == 200
            service.begin_stop()
            refused = [await client.post("/v1/segment", **form(PICTURE, ["four"])), await client.get("/health")]
            held.go.set()
            return await asyncio.gather(*first), full, refused

    finished, full, refused = asyncio.run(ask())
    assert [answer.status_code for answer in finished] == [200, 200]
    assert full.status_code == 429 and full.json()["error"]["code"] == "queue_full"
    assert int(full.headers["retry-after"]) >= 1
    for answer in refused:
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "stopping"
    assert sorted(held.answered) == [["one"], ["two"]] and metric(service, "inside") == 0


def test_a_client_that_goes_away_leaves_the_queue(held, start_service, caplog):
    service = start_service(held)
    app = create_app(service)
    request = httpx.Request("POST", "http://server/v1/segment", **form(PICTURE, ["gone"]))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/segment",
        "raw_path": b"/v1/segment",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers.items()],
        "scheme": "http",
        "server": ("server", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }

    async def ask():
        left, sent = asyncio.Event(), []
        body = iter([{"type": "http.request", "body": request.read(), "more_body": False}])

        async def receive():
            with contextlib.suppress(StopIteration):
                return next(body)
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        async with client_of(service) as client:
            first = asyncio.ensure_future(client.post("/v1/segment", **form(PICTURE, ["remains"])))
            await until(held.began.is_set)
            gone = asyncio.ensure_future(app(scope, receive, send))
            await until(lambda: len(service._batcher) == 1)
            left.set()
            await gone
            assert len(service._batcher) == 0 and service._inside == 1
            held.go.set()
            return await first, sent

    with caplog.at_level(logging.INFO, "transformers_litelvlm.serving"):
        answer, sent = asyncio.run(ask())
    assert answer.status_code == 200 and sent == []
    assert held.answered == [["remains"]]
    lines = list(lines_of(caplog))
    assert sorted(line["status"] for line in lines) == [200, 499]


def test_a_line_of_the_log_for_each_request_without_what_was_asked(start_service, caplog):
    service = start_service()

    async def ask():
        async with client_of(service) as client:
            good = await client.post("/v1/segment", **form(PICTURE, ["the star", "the circle"], budget=20))
            bad = await client.post("/v1/segment", **form(PICTURE, ["the star"], budget=0))
            await client.get("/secret-address")
            return good, bad

    with caplog.at_level(logging.INFO, "transformers_litelvlm.serving"):
        good, bad = asyncio.run(ask())
    first, second, third = lines_of(caplog)
    assert first.pop("ms") > 0 and second.pop("ms") > 0
    expected = {"path": "/v1/segment", "id": good.json()["id"], "status": 200, "sentences": 2, "kept_tokens": [20]}
    assert first == expected
    assert second == {"path": "/v1/segment", "id": bad.headers["x-request-id"], "status": 422, "sentences": 1}
    assert third["path"] == "other" and third["status"] == 404
    assert not [line for line in lines_of(caplog) if "star" in str(line) or "secret" in str(line)]


def test_metrics(start_service):
    service = start_service()

    async def ask():
        async with client_of(service) as client:
            for _ in range(2):
                await client.post("/v1/segment", **form(PICTURE, ["the star"]))
            await client.post("/v1/segment", **form(PICTURE, ["the star"], budget=0))
            return await client.get("/metrics")

    answer = asyncio.run(ask())
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'litelvlm_requests_total{path="/v1/segment",status="200"} 2.0',
        'litelvlm_requests_total{path="/v1/segment",status="422"} 1.0',
        "litelvlm_cache_hits 1.0",
        "litelvlm_cache_misses 1.0",
        "litelvlm_request_seconds_count 2.0",
        'litelvlm_stage_seconds_count{stage="model"} 2.0',
        "litelvlm_batch_size_count 2.0",
        "litelvlm_inside 0.0",
    ):
        assert line in answer.text.splitlines()
    assert "python_gc" not in answer.text  # a registry of its own


def test_addresses_are_fetched_only_where_it_is_allowed(start_service):
    """From this machine; and no more of a file than a request may have."""

    async def ask(service, address):
        async with client_of(service) as client:
            body = {"image": address, "sentences": ["the star"]}
            return await client.post("/v1/segment", json=body)

    file = form(PICTURE, [])["files"]["image"][1]
    with serve_files({"/a.png": file, "/large": b"a" * (2**20 + 1)}) as base:
        assert asyncio.run(ask(start_service(), f"{base}/a.png")).status_code == 422
        service = start_service(allow_urls=True, max_request_mb=1)
        assert asyncio.run(ask(service, f"{base}/a.png")).json()["width"] == 40
        assert asyncio.run(ask(service, f"{base}/large")).status_code == 413
        absent = asyncio.run(ask(service, f"{base}/absent"))
        assert absent.status_code == 422 and "cannot be fetched" in absent.json()["error"]["message"]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["header", "body"])
def test_a_server_that_sends_a_byte_at_a_time_is_left(start_service, monkeypatch, start):
    """Each byte comes in time, the file does not."""
    monkeypatch.setattr(pictures, "FETCH_SECONDS", 1)

    async def drip(reader, writer):
        writer.write(start or b"HTTP/1.1 200 OK\r\nX: ")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.1)

    async def ask():
        service = start_service(allow_urls=True)
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server, client_of(service) as client:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png"
            body = {"image": address, "sentences": ["the star"]}
            answer = await asyncio.wait_for(client.post("/v1/segment", json=body), 20)
            assert metric(service, "inside") == 0
            return answer

    answer = asyncio.run(ask())
    assert answer.status_code == 422 and "could not be fetched in 1 s" in answer.json()["error"]["message"]


@contextlib.contextmanager
def serve_files(files):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def listening(held, start_service):
    """A real server in a thread, and its port."""
    service = start_service(held)
    bound = bind("127.0.0.1", 0)
    server = make_server(create_app(service), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    asyncio.run(until(lambda: server.started))
    yield server, thread, bound.getsockname()[1]
    held.go.set()
    server.should_exit = True
    thread.join(20)
    bound.close()


def test_a_stop_finishes_what_was_begun(held, listening):
    """As a signal does it, with a request in the model, and an open connection that asks for more."""
    server, thread, port = listening
    answers = []

    def ask():
        answers.append(httpx.post(f"http://127.0.0.1:{port}/v1/segment", timeout=60, **form(PICTURE, ["one"])))

    asking = threading.Thread(target=ask)
    asking.start()
    assert held.began.wait(20)
    server.handle_exit(15, None)
    assert server.service.is_stopping and thread.is_alive()
    held.go.set()
    asking.join(20)
    thread.join(20)
    assert [answer.status_code for answer in answers] == [200] and not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def raw(port, content):
    """The first line of the answer to some bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(content)
        received = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(4096):
                received += part
    return received.split(b"\r\n")[0]


def test_bytes_that_are_no_request(listening):
    _, _, port = listening
    huge = b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000 + b"\r\n\r\n"
    for content in (huge, b"\x00\x01\x02\r\n\r\n", b"GET /health\r\n\r\n"):
        assert raw(port, content) in (b"HTTP/1.1 400 Bad Request", b"HTTP/1.1 400 ")
    assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "ok"
