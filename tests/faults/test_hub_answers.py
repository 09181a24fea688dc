"""The Hub says no, is busy, is ill, is a login page, or is not there: cause and remedy each, and asked again where it helps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from oracles import Ended, ends_in_words

pytestmark = pytest.mark.faults
NAME = "somebody/some-model"
TOKEN = "hf_plantedPlantedPlantedPlanted00"


class Hub:
    """A server on this machine that answers every request alike, and remembers how many there were."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def hub(status: int, headers: dict[str, str] | None = None, body: bytes = b'{"error": "no"}') -> Iterator[Hub]:
    one = Hub(status, {"Content-Type": "application/json"} | (headers or {}), body)
    threading.Thread(target=one.server.serve_forever, daemon=True).start()
    yield one
    one.server.shutdown()


def download(address: str, folder: Path) -> Ended:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "cai_helpers", "download", "--preset", "smoke", "--model", NAME]
    command += ["--adapter", "none", "--workspace", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("status", "headers", "says", "requests"),
    [
        (401, {}, "does not take the token", 1),
        (401, {"X-Error-Code": "RepoNotFound"}, "is not on the Hub, or is private", 1),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: its licence must be accepted once", 1),
        (403, {}, "refuses somebody/some-model to this account", 1),
        (404, {"X-Error-Code": "RepoNotFound"}, "is not on the Hub, or is private", 1),
        (429, {}, "too many requests", 3),
        (500, {}, "is not well (HTTP 500)", 3),
        (503, {}, "is not well (HTTP 503)", 3),
    ],
)
def test_each_refusal_of_the_hub_is_told_with_its_remedy(status, headers, says, requests, tmp_path, ledger):
    with hub(status, headers) as one:
        ended = download(one.address, tmp_path)
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert ended.code == 1
    assert says in ended.said
    assert NAME in ended.said
    assert len(one.requests) >= requests
    assert TOKEN not in ended.out + ended.err
    ledger.survived += 1


def test_a_login_page_in_place_of_the_hub_is_no_model(tmp_path, ledger):
    page = b"<html><title>Welcome to the airport</title>Accept our terms</html>"
    with hub(200, {"Content-Type": "text/html"}, page) as one:
        ended = download(one.address, tmp_path)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1
    assert NAME in ended.said
    ledger.survived += 1


def test_a_hub_that_is_not_there_is_named_with_what_works_without_it(tmp_path, ledger):
    with hub(200) as one:
        address = one.address  # nothing listens there any more
    one.server.server_close()
    ended = download(address, tmp_path)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1
    assert "The Hub could not be reached for somebody/some-model" in ended.said
    assert "HF_HUB_OFFLINE=1" in ended.said
    ledger.survived += 1
