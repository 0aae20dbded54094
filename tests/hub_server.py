"""A local server with the paths, headers and answers of the Hugging Face hub."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub:
  """The repositories of a folder, OWNER/NAME/FILE.

  Attributes:
    url: of the server, as HF_ENDPOINT has it.
    asked: method, path and range of each request for a file.
    cut: of a file, after how many bytes its next download breaks off.
    wrong: files of which other bytes are sent.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self.asked: list[tuple[str, str, str]] = []
    self.cut: dict[str, int] = {}
    self.wrong: set[str] = set()
    self.url = ""

  def info(self, name: str) -> dict:
    """What /api/models/NAME?blobs=True answers."""
    siblings = []
    for file in sorted((self.folder / name).iterdir()):
      data = file.read_bytes()
      git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
      sibling = {"rfilename": file.name, "size": len(data), "blobId": git}
      if is_large(file):
        sha = hashlib.sha256(data).hexdigest()
        sibling["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
      siblings.append(sibling)
    return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


def is_large(file: Path) -> bool:
  """Whether the hub stores a file with Git LFS."""
  return file.suffix in (".safetensors", ".msgpack", ".bin", ".model")


class _Handler(BaseHTTPRequestHandler):
  hub: Hub
  protocol_version = "HTTP/1.1"

  def log_message(self, *args: object) -> None:
    """Says nothing."""

  def do_HEAD(self) -> None:
    self._answer(body=False)

  def do_GET(self) -> None:
    self._answer(body=True)

  def _answer(self, body: bool) -> None:
    path = unquote(urlsplit(self.path).path)
    if path.startswith("/api/models/"):
      name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
      if not (self.hub.folder / name).is_dir():
        return self._missing("RepoNotFound", 401, body)
      data = json.dumps(self.hub.info(name)).encode()
      return self._send(200, data, {"Content-Type": "application/json"}, body)
    if "/resolve/" not in path:  # huggingface_hub also looks for lists of other programs
      return self._missing("EntryNotFound", 404, body)
    owner, name, _, revision, *rest = path.strip("/").split("/")
    file = self.hub.folder / owner / name / "/".join(rest)
    self.hub.asked.append((self.command, file.name, self.headers.get("Range", "")))
    if revision not in ("main", COMMIT) or not file.is_file():
      return self._missing("EntryNotFound", 404, body)
    return self._send_file(file, body)

  def _send_file(self, file: Path, body: bool) -> None:
    data = file.read_bytes()
    hashed = hashlib.sha256(data) if is_large(file) else hashlib.sha1(data)
    if file.name in self.hub.wrong:
      data = bytes(len(data))
    headers = {"ETag": f'"{hashed.hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
    status, whole = (206, len(data)) if start else (200, len(data))
    if start:
      headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
    end = self.hub.cut.pop(file.name, None) if body else None
    return self._send(status, data[start:], headers, body, end)

  def _missing(self, code: str, status: int, body: bool) -> None:
    self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "none"}, body)

  def _send(
    self, status: int, data: bytes, headers: dict, body: bool, end: int | None = None
  ) -> None:
    self.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(data))}).items():
      self.send_header(name, value)
    self.end_headers()
    if body:
      self.wfile.write(data[:end])
    if end is not None:
      self.close_connection = True


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Hub]:
  """Serves a folder of repositories while the block runs."""
  hub = Hub(folder)
  handler = type("Handler", (_Handler,), {"hub": hub})
  server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
  hub.url = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
