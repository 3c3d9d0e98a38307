"""A row of data never makes this machine ask for an address, unless its reader is told to."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from transformers_litelvlm.data import UnreadableImageError, encode_mask, load_split
from transformers_litelvlm.data.samples import read_picture


@pytest.fixture
def address():
    """Of a picture, and the requests for it."""
    encoded, requests = io.BytesIO(), []
    Image.new("RGB", (6, 4), "red").save(encoded, format="PNG")

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded.getvalue())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/red.png", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_are_fetched_on_request_alone(address):
    url, requests = address
    mask = np.eye(4, 6, dtype=bool)
    polygon = [[0, 0, 3, 0, 3, 3]]
    rows = [
        {"image": url, "text": "this", "mask": encode_mask(mask)},
        {"image": {"path": url, "bytes": None}, "text": "this", "mask": polygon},
    ]
    for sample in load_split("rows", "mine", rows):
        with pytest.raises(UnreadableImageError, match=r"is an address, .*allow_urls=True"):
            sample.load_image()
    with pytest.raises(UnreadableImageError, match="is an address"):  # its size is needed
        _ = sample.sentences[0].mask
    with pytest.raises(UnreadableImageError, match="is an address"):
        read_picture(url, "a frame")
    assert requests == []
    first, second = load_split("rows", "mine", rows, allow_urls=True)
    assert first.load_image().getpixel((0, 0)) == (255, 0, 0) and second.load_image().size == (6, 4)
    assert second.sentences[0].mask.shape == (4, 6)
    assert requests == ["/red.png"] * 3
