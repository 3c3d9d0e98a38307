"""A Hub in memory, behind the HTTP client of huggingface_hub: what is sent is real, what answers is not."""

import base64
import hashlib
import importlib
import json
import re

from huggingface_hub import get_session


# httpx, or httpx2 since huggingface_hub 2.
httpx = importlib.import_module(type(get_session()).__module__.partition(".")[0])


class FakeHub:
    """
    Repositories as dictionaries of files.

    Args:
        files: repository -> path -> content, before the test.
    """

    def __init__(self, files: dict[str, dict[str, bytes]] | None = None) -> None:
        self.files = files or {}
        self.commits: list[dict] = []  # repository, revision, create_pr, summary, names

    def client(self) -> object:
        return httpx.Client(transport=httpx.MockTransport(self._answer), follow_redirects=True)

    def _answer(self, request):
        path = request.url.path
        if path == "/api/repos/create":
            body = json.loads(request.content)
            repo_id = "/".join(part for part in (body.get("organization") or "me", body["name"]))
            self.files.setdefault(repo_id, {})
            return httpx.Response(200, json={"url": f"https://huggingface.co/{repo_id}"})
        if path == "/api/validate-yaml":
            return httpx.Response(200, json={"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/preupload/([\w%-]+)", path):
            names = [file["path"] for file in json.loads(request.content)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return httpx.Response(200, json={"files": modes})
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/branch/([\w%-]+)", path):
            return httpx.Response(200, json={})
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/commit/([\w%-]+)", path):
            return self._commit(match[1], match[2], request)
        if match := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([\w%-]+)/(.+)", path):
            return self._file(match[1], match[3])
        return httpx.Response(500, text=f"the fake Hub does not know {request.method} {path}")

    def _commit(self, repo_id: str, revision: str, request):
        lines = [json.loads(line) for line in request.read().splitlines()]
        header = lines[0]["value"]
        sent = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        self.files[repo_id].update(sent)
        create_pr = request.url.params.get("create_pr") == "1"
        commit = {"repo_id": repo_id, "revision": revision, "create_pr": create_pr, "summary": header["summary"]}
        self.commits.append({**commit, "names": sorted(sent)})
        return httpx.Response(
            200,
            json={"commitUrl": f"https://huggingface.co/{repo_id}/commit/1", "commitOid": "1", "pullRequestUrl": None},
        )

    def _file(self, repo_id: str, name: str):
        content = self.files.get(repo_id, {}).get(name)
        if content is None:
            return httpx.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {
            "X-Repo-Commit": "1" * 40,
            "ETag": hashlib.sha1(content).hexdigest(),
            "Content-Length": str(len(content)),
        }
        return httpx.Response(200, headers=headers, content=content)
