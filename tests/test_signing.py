"""Signing in: only when something needs it, from where a token is, with a word about each way; and a token is found nowhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from kernel import Kernel

from cai_helpers.errors import CaiError
from cai_helpers.notebook import colab, signing
from cai_helpers.settings import load_settings

ANN, BOB = "hf_" + "a" * 34, "hf_" + "b" * 34


class Hub(ThreadingHTTPServer):
    """Says who a token is of, and who may read what."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gated = {"google/gemma-2b-it": ["ann"]}
        self.private = {"me/stage2": ["ann", "bob"]}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        who = {ANN: "ann", BOB: "bob"}.get(token)
        self.server.asked.append(self.path)
        if token and who is None:
            return self._send(401, {"error": "Invalid credentials"})
        if self.path == "/api/whoami-v2":
            return self._send(200, {"type": "user", "name": who}) if who else self._send(401, {"error": "no token"})
        name = re.fullmatch(r"/api/(?:models|datasets)/(.+)/auth-check", self.path)[1]
        if name in self.server.gated and who not in self.server.gated[name]:
            return self._send(403 if who else 401, {"error": "gated"}, "GatedRepo")
        if name in self.server.private and who not in self.server.private[name]:
            return self._send(404, {"error": "not found"}, "RepoNotFound")
        self._send(200, {})

    def _send(self, status: int, value: dict, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "ENDPOINT": server.address, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "stored"), "HF_HUB_CACHE": str(tmp_path / "hub"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CAI_WORKSPACE", "CAI_PRESET"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def typed(monkeypatch):
    """What the person types at the hidden prompt, and how often they were asked."""
    texts: list[str] = []
    asked: list[str] = []

    def getpass(prompt: str) -> str:
        asked.append(prompt)
        return texts.pop(0)

    monkeypatch.setattr("getpass.getpass", getpass)
    return texts, asked


def test_nothing_is_asked_where_nothing_is_closed(hub, typed, capsys):
    colab.open_run("open", "t4", {"base_model": "Qwen/Qwen3-0.6B"})
    colab.open_run("tiny", "smoke")
    assert typed[1] == []
    assert "token" not in capsys.readouterr().out.lower()


def test_a_gated_model_is_the_reason_and_the_account_is_named(hub, typed, capsys):
    typed[0].append(ANN)
    colab.open_run("first", "t4")
    said = capsys.readouterr().out
    assert "A Hub token is needed: google/gemma-2b-it is gated" in said
    assert "Signed in to the Hub as ann." in said
    assert ANN not in said
    colab.open_run("first", "t4")
    assert len(typed[1]) == 1  # it is there now


def test_a_private_adapter_needs_one_too(hub, typed, capsys):
    typed[0].append(BOB)
    colab.open_run("first", "t4", {"base_model": "Qwen/Qwen3-0.6B", "stage2_adapter": "me/stage2"})
    assert "me/stage2 is private, or there is none of that name" in capsys.readouterr().out


def test_an_account_that_did_not_accept_the_licence_is_told_where(hub, typed):
    typed[0].append(BOB)
    with pytest.raises(CaiError, match="google/gemma-2b-it is gated: .* the account bob may not read it") as refused:
        colab.open_run("first", "t4")
    assert "https://huggingface.co/google/gemma-2b-it" in refused.value.todo
    assert "colab.sign_in(again=True)" in refused.value.todo


def test_somebody_else_is_asked_for_and_the_first_is_forgotten(hub, typed, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", BOB)
    Path(constants.HF_TOKEN_PATH).write_text(BOB)
    typed[0].append(ANN)
    colab.sign_in(again=True)
    assert "Signed in to the Hub as ann." in capsys.readouterr().out
    assert os.environ["HF_TOKEN"] == ANN
    assert not Path(constants.HF_TOKEN_PATH).exists()


def test_a_token_that_the_hub_does_not_take_is_not_kept(hub, typed):
    typed[0].append("hf_wrong")
    with pytest.raises(CaiError, match="does not take the token"):
        colab.sign_in("a push")
    assert "HF_TOKEN" not in os.environ


def test_the_environment_and_a_saved_login_come_before_any_question(hub, typed, monkeypatch, capsys):
    Path(constants.HF_TOKEN_PATH).write_text(BOB)
    colab.sign_in("a push")
    monkeypatch.setenv("HF_TOKEN", ANN)
    colab.sign_in("a push")
    assert re.findall("as (.*)[.]", capsys.readouterr().out) == ["bob", "ann"]
    assert typed[1] == []


def test_without_any_token_it_is_said_what_needed_it(hub, typed):
    typed[0].append(" ")
    with pytest.raises(CaiError, match="No Hub token, and google/gemma-2b-it is gated") as missing:
        colab.open_run("first", "t4")
    assert "Qwen/Qwen3-1.7B" in missing.value.todo


def test_where_nothing_can_be_typed_the_hubs_own_login_is_shown(hub, monkeypatch, capsys):
    def refuses(prompt: str) -> str:
        raise NotImplementedError("this front end takes no input")

    shown = []
    monkeypatch.setattr("getpass.getpass", refuses)
    monkeypatch.setattr(
        "huggingface_hub.notebook_login", lambda: shown.append(Path(constants.HF_TOKEN_PATH).write_text(ANN))
    )
    colab.sign_in("a push")
    assert len(shown) == 1
    assert "Signed in to the Hub as ann." in capsys.readouterr().out


# --- Colab's secrets ---


def test_colabs_secret_is_found_by_itself(hub, typed, colab_runtime, capsys):
    colab_runtime.userdata.SECRETS["HF_TOKEN"] = f" {ANN}\n"
    colab.open_run("first", "t4", keep="none")
    assert "Signed in to the Hub as ann." in capsys.readouterr().out
    assert typed[1] == []


def test_colabs_secret_is_not_even_asked_for_where_nothing_needs_it(hub, colab_runtime):
    colab.open_run("first", "smoke", keep="none")
    colab.open_run("open", "t4", {"base_model": "Qwen/Qwen3-0.6B"}, keep="none")
    assert colab_runtime.userdata.ASKED == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("SecretNotFoundError", "Colab has no secret HF_TOKEN: you can add one with the key icon on the left."),
        ("NotebookAccessError", "this notebook may not read it: switch on its access"),
        ("TimeoutException", "Colab did not answer for the secret HF_TOKEN: the page is closed or detached."),
    ],
)
def test_a_secret_that_cannot_be_had_is_said_and_the_prompt_comes(hub, typed, colab_runtime, capsys, error, said):
    colab_runtime.userdata.SECRETS["HF_TOKEN"] = getattr(colab_runtime.userdata, error)
    typed[0].append(ANN)
    colab.open_run("first", "t4", keep="none")
    told = capsys.readouterr().out
    assert said in told
    assert "Signed in to the Hub as ann." in told


def test_what_the_run_needs_of_the_hub_is_listed_once(tmp_path):
    settings = load_settings(
        "t4", ["models.adapter=me/stage2", "prompts.source=me/prompts", "evaluate.scorer=me/judge"]
    )
    names = [name for name, _ in signing.remote_names(settings)]
    assert names == ["google/gemma-2b-it", "me/stage2", settings.models.reward.model, "me/judge", "me/prompts"]
    assert signing.remote_names(load_settings("smoke")) == []


# --- a planted token is found nowhere ---


@pytest.mark.slow
def test_a_planted_token_is_in_no_file_no_output_and_no_process_arguments(hub, small_run, tmp_path):
    folder, fake = tmp_path / "work", Path(__file__).parent / "fake_colab"
    folder.mkdir()
    run = folder / "run"
    shutil.copytree(small_run.root, run)
    cells = [
        f"from google.colab import userdata\nuserdata.SECRETS['HF_TOKEN'] = open({str(tmp_path / 'secret')!r}).read()",
        "from cai_helpers.notebook import colab, widgets\nsettings, workspace = colab.open_run('first', 'smoke', keep='none')",
        "colab.sign_in('a push is to be made')",
        "from cai_helpers.doctor import examine\nwidgets.show_checks(examine(settings, workspace))\nwidgets.show_settings(settings)",
        "from cai_helpers.stages.export import export_artifacts\nwidgets.show(export_artifacts(settings, workspace))",
        "raise ValueError(settings)",
    ]
    (tmp_path / "secret").write_text(ANN)
    environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder / "home"),
        "CAI_WORKSPACE": str(run),
    }
    with Kernel(folder, PYTHONPATH=str(fake), **environment) as kernel:
        shown = [kernel.run(cell) for cell in cells]
        arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "Signed in to the Hub as ann." in shown[2].text  # it was used
    assert [ran.error for ran in shown[:-1]] == [""] * 5
    assert ANN not in "".join(ran.text + ran.error for ran in shown)
    assert ANN not in arguments
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if ANN.encode() in path.read_bytes()] == []
    with zipfile.ZipFile(run / "export" / "stage3_constitutional.zip") as archive:
        assert [name for name in archive.namelist() if ANN.encode() in archive.read(name)] == []
