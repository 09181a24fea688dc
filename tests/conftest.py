"""Fixtures that several test files share, and scripted twins of the two seams."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tqdm.auto
from warm import Warm

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library reads it: no test may reach the network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from cai_helpers import screen
from cai_helpers.models.flow import answers_of
from cai_helpers.models.generator import Answered, Request
from cai_helpers.schema import Completion, Messages
from cai_helpers.settings import Settings, load_settings
from cai_helpers.workspace import Workspace


class ScriptedGenerator:
    """A Generator that gives out `texts` in the order of the requests, all that wait in one step; it fails when they run out."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)
        self.chats: list[Messages] = []

    def open(self, batch_size: int) -> ScriptedSession:
        return ScriptedSession(self, batch_size)

    def generate(self, chats, sampling, keys, batch_size):
        return answers_of(self, enumerate(chats), sampling, keys, batch_size)

    def answer(self, request: Request) -> Completion:
        self.chats.append(request.chat)
        try:
            text = next(self._texts)
        except StopIteration:
            raise AssertionError(f"the script has no text left for {request.chat}") from None
        return Completion(text=text, tokens=len(text.split()) + 1, finish="stop")


class ScriptedSession:
    def __init__(self, generator: ScriptedGenerator, batch_size: int) -> None:
        self._generator = generator
        self._batch_size = batch_size
        self._waiting: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        self._waiting += requests

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        return self._batch_size - len(self._waiting)

    def step(self, wait: bool) -> list[Answered]:
        answered: list[Answered] = []
        while self._waiting:
            try:
                completion = self._generator.answer(self._waiting[0])
            except AssertionError:
                if answered:  # what had ended before is handed out first
                    break
                raise
            answered.append((self._waiting.pop(0), completion))
        return answered

    def close(self) -> None:
        self._waiting.clear()


@pytest.fixture
def scripted() -> type[ScriptedGenerator]:
    return ScriptedGenerator


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run")


@pytest.fixture(scope="session")
def smoke() -> Settings:
    """The smoke preset on one thread: two are slower when tests share the machine."""
    return load_settings("smoke", threads=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """tiny_run's random models: base/, and the LoRA stage2/ on it."""
    import tiny_run

    return tiny_run.write_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Workspace:
    """A finished run on the embedded models. It is shared: copy what is to be changed."""
    import small_run

    return small_run.make_run(tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def no_training_picture(monkeypatch):
    """Runs that are made in a test, not in a module's fixture, draw none: it takes a second each."""
    monkeypatch.setattr("cai_helpers.pages.training_picture.save_training_plot", lambda workspace: None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real transcripts and gold pairs that lie beside the checkout on the project's machines."""
    folder = Path(os.environ.get("CAI_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not on this machine (set CAI_SHARED)")
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Real processes that begin in a moment."""
    server = Warm(tmp_path_factory.mktemp("calls"))
    yield server
    server.close()


class ColabRuntime:
    """A fake Colab that a test fills: its /content, what is on Drive, and google.colab's modules."""

    def __init__(self, content: Path, cloud: Path) -> None:
        self.content, self.cloud = content, cloud
        names = ("drive", "errors", "files", "output", "userdata")
        self.drive, self.errors, self.files, self.output, self.userdata = (
            importlib.import_module(f"google.colab.{name}") for name in names
        )
        self.drive.CLOUD = cloud

    def lose(self) -> None:
        """The runtime goes: /content with it, and what the kernel holds; Drive stays."""
        import shutil

        self.drive.flush_and_unmount()
        shutil.rmtree(self.content)
        self.content.mkdir()


@pytest.fixture
def colab_runtime(tmp_path, monkeypatch) -> Iterator[ColabRuntime]:
    """google.colab as tests/fake_colab has it; elsewhere in the tests there is none."""
    from cai_helpers.notebook import places

    def forget() -> None:
        for name in [name for name in sys.modules if name == "google.colab" or name.startswith("google.colab.")]:
            del sys.modules[name]
        if not others and "google" in sys.modules:
            del sys.modules["google"]  # it would remember where its parts were
        elif others:
            vars(sys.modules["google"]).pop("colab", None)

    others = "google" in sys.modules  # of protobuf, say
    monkeypatch.syspath_prepend(Path(__file__).parent / "fake_colab")
    content, cloud = tmp_path / "content", tmp_path / "cloud"
    content.mkdir(), cloud.mkdir()
    monkeypatch.setattr(places, "CONTENT", content)
    for name in ("CAI_WORKSPACE", "CAI_PRESET", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    forget()
    yield ColabRuntime(content, cloud)
    forget()


@pytest.fixture(autouse=True)
def no_notebook_is_left_behind() -> Iterator[None]:
    """What a test of the notebook puts in the terminal's place is taken away again."""
    bar = tqdm.auto.tqdm
    yield
    tqdm.auto.tqdm = bar
    screen.show_on(screen.TERMINAL)
