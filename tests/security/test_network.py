"""No connection is attempted unless a hub id was named; and then only for what is used."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from traced import Traced, run_traced, write_canary_rows

LOAD = """
import sys, torch
from duiti.errors import DuitiError
from duiti.model.load import load_config, load_model, load_tokenizer, resolve
source = resolve(sys.argv[1])
try:
    load_config(source)
    load_tokenizer(source)
    load_model(source, dtype=torch.float32, device="cpu")
    print("loaded")
except DuitiError as error:
    print(error)
"""


def test_every_verb_works_without_an_attempt_to_reach_a_network(everything: Traced) -> None:
    assert everything.connections == ()
    assert everything.codes == ["0"] * 11, everything.stderr[-2000:]


def test_a_hub_id_without_a_network_is_a_clear_error(tmp_path: Path) -> None:
    """And the tracer traces: here there are attempts."""
    write_canary_rows(tmp_path / "rows.jsonl")
    traced = run_traced(
        tmp_path,
        ["check", "rows.jsonl", "-m", "owner/name"],
        ["train", "rows.jsonl", "-m", "owner/name"],
        ["chat", "owner/name", "-p", "Hello"],
    )
    assert traced.codes == ["2", "2", "2"]
    assert traced.connections
    assert all("huggingface.co" in attempt for attempt in traced.connections)
    errors = [line for line in traced.stderr.splitlines() if line.startswith("✗")]
    assert len(errors) == 3
    assert all("owner/name is a hub id that is not on this machine" in line for line in errors)
    assert traced.stderr.count("fix: with a network the same command fetches it") == 3
    assert "Traceback" not in traced.stderr


def load(name: str, home: Path, endpoint: str, *, limit_s: float = 300, **more: str) -> str:
    """What loading a model in a process of its own ends in."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **more}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name],
        env=env,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=True,
    )
    return done.stdout


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        found = load("owner/name", tmp_path, f"http://127.0.0.1:{deaf.getsockname()[1]}")
    assert "owner/name is a hub id that is not on this machine" in found


class Hub:
    """A hub of one model, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked, files = self.asked, {path.name: path.read_bytes() for path in folder.iterdir()}
        commit = "0123456789" * 4

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                asked.append(path)
                if path.startswith("/api/models/owner/name/tree/"):
                    kinds = [
                        {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                        for name, data in files.items()
                    ]
                    self._answer(json.dumps(kinds).encode())
                elif path.startswith("/api/models/owner/name"):
                    siblings = [{"rfilename": name} for name in files]
                    info = {"id": "owner/name", "sha": commit, "siblings": siblings}
                    self._answer(json.dumps(info).encode())
                elif (name := path.rpartition("/")[2]) in files and "/resolve/" in path:
                    self._answer(files[name], etag=f'"{name}"')
                else:
                    self.send_error(404)

            def _answer(self, body: bytes, etag: str = "") -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                if etag:
                    self.send_header("ETag", etag)
                    self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nowhere."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def open(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


@pytest.fixture
def hub(llama_dir: Path, tmp_path: Path) -> Hub:
    folder = Path(shutil.copytree(llama_dir, tmp_path / "on the hub"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    (folder / "README.md").write_text("# read me")
    return Hub(folder)


def test_of_a_hub_id_only_what_is_used_is_fetched_and_once(hub: Hub, tmp_path: Path) -> None:
    with hub.open():
        found = load("owner/name", tmp_path / "home", hub.endpoint)
        assert found == "loaded\n", found
        fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
        assert {"config.json", "tokenizer.json", "model.safetensors"} <= fetched
        assert not fetched & {"pytorch_model.bin", "evil.py", "README.md"}
        # The last is the library's own question, of the same hub.
        own = ("/owner/name/", "/api/models/owner/name", "/api/agent-harnesses")
        assert [path for path in hub.asked if not f"{path}/".startswith(own)] == []
        missing = load("owner/other", tmp_path / "home", hub.endpoint)
        assert missing.startswith("owner/other"), missing
    # The hub is gone: what was fetched is enough.
    found = load("owner/name", tmp_path / "home", hub.endpoint)
    assert found == "loaded\n", found
    assert load("owner/name", tmp_path / "home", hub.endpoint, HF_HUB_OFFLINE="1") == "loaded\n"
    assert "HF_HUB_OFFLINE" in load("a/b", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
