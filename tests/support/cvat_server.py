"""As much of a CVAT server as `cvat-cli task auto-annotate 1` asks for: a task with pictures, and its labels."""

import io
import json
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def cvat_server(files, sizes, labels, label_type="mask"):
    """Its port, and the list of shapes that were uploaded.

    Args:
        files: name -> content.
        sizes: width and height of each, upright.
        labels: names of the task's labels, which have the ids 70, 71, ...
    """
    chunk, uploaded = io.BytesIO(), []
    with zipfile.ZipFile(chunk, "w") as archive:
        for index, (name, content) in enumerate(files.items()):
            archive.writestr(f"{index:06}.{name.rpartition('.')[2]}", content)
    frames = [
        {"width": width, "height": height, "name": name, "related_files": 0}
        for name, (width, height) in zip(files, sizes, strict=True)
    ]
    jobs = {"url": "", "count": 1, "completed": 0, "validation": 0}
    task = {"id": 1, "url": "", "name": "shapes", "size": len(files), "mode": "annotation", "jobs": jobs}
    task |= {
        "labels": {"url": ""},
        "organization": None,
        "organization_id": None,
        "updated_date": "2026-01-01T00:00:00Z",
    }
    task |= {"data_chunk_size": len(files), "data_original_chunk_type": "imageset"}
    of_label = {"color": "#000000", "attributes": [], "type": label_type, "sublabels": [], "has_parent": False}
    meta = {"media_type": "image", "size": len(files), "start_frame": 0, "stop_frame": len(files) - 1}
    meta |= {"frames": frames, "deleted_frames": [], "image_quality": 70, "chunk_size": len(files)}
    answers = {
        "/api/server/about": {"name": "", "description": "", "version": "2.80.0", "logo_url": "", "subtitle": ""},
        "/api/tasks/1": task,
        "/api/labels": {
            "count": len(labels),
            "next": None,
            "previous": None,
            "results": [of_label | {"id": 70 + index, "name": name} for index, name in enumerate(labels)],
        },
        "/api/tasks/1/data/meta": meta | {"chunks_updated_date": "2026-01-01T00:00:00Z"},
        "/api/tasks/1/data": chunk.getvalue(),
    }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, content):
            is_file = isinstance(content, bytes)
            content = content if is_file else json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_file else "application/vnd.cvat+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):  # noqa: N802
            path = urlsplit(self.path).path.rstrip("/")
            self.answer(answers[path]) if path in answers else self.send_error(404)

        def do_PATCH(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            uploaded.extend(body["shapes"])
            self.answer({"version": 0, "tags": [], "shapes": [], "tracks": []})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, uploaded
    finally:
        server.shutdown()
        server.server_close()
