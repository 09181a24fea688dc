"""Against a real HTTP server on this machine that speaks /v1/chat/completions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.models import endpoint, endpoint_answers, endpoint_request
from cai_helpers.models.endpoint import EndpointGenerator, Usage
from cai_helpers.models.sampling import Sampling
from cai_helpers.scoring.endpoint_letters import EndpointLetters
from cai_helpers.settings import Endpoint, change_settings, load_settings
from cai_helpers.workspace import Workspace

KEY = "sk-secret-7f3a"
SAMPLING = Sampling(max_new_tokens=64, temperature=0.7, top_p=0.9, seed=5)


class Reply:
    """What the server sends back."""

    def __init__(self, body: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.headers = headers or {}

    def parts(self) -> Iterator[bytes]:
        """What is sent, in so many writes."""
        yield self.body


def answer(text: str | None, finish: str = "stop", usage: tuple[int, int] | None = (10, 4)) -> Reply:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    metering = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
    return Reply({"id": "1", "object": "chat.completion", "choices": [choice], **metering})


def refuse(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply({"error": {"message": message}}, status, {name.replace("_", "-"): headers[name] for name in headers})


class Server(ThreadingHTTPServer):
    """Answers with `reply(body of the request)`; keeps what it was asked and how many requests it held at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Callable[[dict], Reply] = lambda body: answer(f"re: {body['messages'][-1]['content']}")
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.released = threading.Event()  # for replies that hang until the test is over
        self.in_flight = self.most_in_flight = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that has gone away is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append({"path": self.path, **body})
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            reply = server.reply(body)
        finally:
            with server.lock:
                server.in_flight -= 1
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in reply.parts():
            self.wfile.write(part)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def a_generator(server: Server, **settings) -> EndpointGenerator:
    return EndpointGenerator(Endpoint(**{"base_url": server.base_url, "model": "judge", **settings}).by_person())


def chats(*texts: str) -> list[list[dict]]:
    return [[{"role": "user", "content": text}] for text in texts]


def complete(generator: EndpointGenerator, *texts: str) -> dict[int, str]:
    rows = generator.generate(chats(*texts), SAMPLING, [f"{text}/critique" for text in texts], batch_size=32)
    return {index: completion.text for index, completion in rows}


def in_turn(*replies: Reply) -> Callable[[dict], Reply]:
    """The replies in order, whatever is asked."""
    left = iter(replies)
    return lambda body: next(left)


def then_hang(server: Server, replies: list[Reply]) -> Callable[[dict], Reply]:
    """The replies in order; whoever asks for more waits until the test is over."""
    left = iter(replies)

    def reply(body: dict) -> Reply:
        with server.lock:
            reply = next(left, None)
        if reply is None:
            server.released.wait(10)
        return reply or answer("too late")

    return reply


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def test_every_chat_gets_its_own_answer_and_the_usage_is_counted(server: Server) -> None:
    generator = a_generator(server, input_price=2.0, output_price=10.0)
    assert complete(generator, "a", "b", "c") == {0: "re: a", 1: "re: b", 2: "re: c"}
    assert generator.usage == Usage(
        input_price=2.0, output_price=10.0, requests=3, retried=0, failed={}, input_tokens=30, output_tokens=12
    )
    assert generator.usage.cost == pytest.approx(0.00018)


def test_usage_adds_up_over_calls(server: Server) -> None:
    generator = a_generator(server)
    complete(generator, "a")
    complete(generator, "b", "c")
    assert (generator.usage.requests, generator.usage.output_tokens) == (3, 12)


def test_the_endpoint_is_told_the_model_the_sampling_and_the_chat_as_it_is(server: Server) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    list(a_generator(server).generate([chat], SAMPLING, ["p/critique"], 1))
    assert server.asked == [
        {
            "path": "/v1/chat/completions",
            "model": "judge",
            "messages": chat,
            "max_tokens": 64,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 1067738082,
            "stream": False,
        }
    ]


def test_the_same_key_sends_the_same_seed_and_another_key_or_seed_another(server: Server) -> None:
    generator = a_generator(server, concurrency=1)
    for key, seed in [("p/critique", 5), ("p/critique", 5), ("q/critique", 5), ("p/critique", 6)]:
        list(generator.generate(chats("Hi"), SAMPLING.model_copy(update={"seed": seed}), [key], 1))
    first, second, other_key, other_seed = [request["seed"] for request in server.asked]
    assert first == second
    assert len({first, other_key, other_seed}) == 3
    assert all(0 <= seed < 2**31 for seed in (first, other_key, other_seed))


def test_as_many_requests_as_allowed_are_under_way_at_once_and_no_more(server: Server) -> None:
    together = threading.Barrier(4, timeout=10)  # holds each request until three others are there

    def reply(body: dict) -> Reply:
        together.wait()
        return answer("done")

    server.reply = reply
    assert len(complete(a_generator(server, concurrency=4), *"abcdefgh")) == 8
    assert server.most_in_flight == 4


@pytest.mark.parametrize(
    ("finish", "expected"),
    [("stop", "stop"), ("eos_token", "stop"), ("length", "length"), ("content_filter", "length")],
)
def test_the_finish_reason_says_whether_the_text_ended_by_itself(server: Server, finish: str, expected: str) -> None:
    server.reply = in_turn(answer("text", finish))
    [(_, completion)] = a_generator(server).generate(chats("Hi"), SAMPLING, ["k"], 1)
    assert completion.finish == expected


def test_an_answer_without_usage_is_used_and_counted_as_unmetered(server: Server) -> None:
    server.reply = in_turn(answer("text", usage=None))
    generator = a_generator(server)
    [(_, completion)] = generator.generate(chats("Hi"), SAMPLING, ["k"], 1)
    assert (completion.text, completion.tokens) == ("text", 0)
    assert (generator.usage.unmetered, generator.usage.output_tokens) == (1, 0)


def test_an_answer_whose_text_is_null_is_empty_text(server: Server) -> None:
    server.reply = in_turn(answer(None, "length"))
    assert complete(a_generator(server), "Hi") == {0: ""}


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names(server: Server) -> None:
    server.reply = in_turn(refuse(429, Retry_After="0.5"), answer("at last"))
    generator = a_generator(server)
    assert complete(generator, "Hi") == {0: "at last"}
    assert server.times[1] - server.times[0] >= 0.5
    assert (generator.usage.requests, generator.usage.retried, generator.usage.failed) == (2, 1, {})


def test_a_dropped_connection_is_tried_again(server: Server) -> None:
    replies = in_turn(answer("at last"))

    def reply(body: dict) -> Reply:
        if len(server.asked) == 1:
            raise ConnectionAbortedError  # the handler ends without a word
        return replies(body)

    server.reply = reply
    assert complete(a_generator(server), "Hi") == {0: "at last"}


def test_an_error_whose_body_is_a_json_list_is_understood(server: Server) -> None:
    server.reply = in_turn(Reply([{"error": {"message": "slow down"}}], 429), answer("at last"))
    assert complete(a_generator(server), "Hi") == {0: "at last"}


def test_a_row_that_fails_after_its_retries_is_left_out_and_counted(server: Server) -> None:
    server.reply = lambda body: refuse(500) if body["messages"][0]["content"] == "bad" else answer("good")
    generator = a_generator(server, retries=2)
    assert complete(generator, "a", "bad", "c") == {0: "good", 2: "good"}
    assert generator.usage.failed == {"HTTP 500": 1}
    assert (generator.usage.requests, generator.usage.retried) == (5, 2)


def test_a_row_that_is_refused_for_its_content_is_not_tried_again(server: Server) -> None:
    server.reply = lambda body: refuse(400) if body["messages"][0]["content"] == "bad" else answer("good")
    generator = a_generator(server)
    assert complete(generator, "a", "bad", "c") == {0: "good", 2: "good"}
    assert (generator.usage.requests, generator.usage.failed) == (3, {"HTTP 400": 1})


def test_rows_that_are_refused_for_their_content_do_not_stop_an_endpoint_that_has_answered(server: Server) -> None:
    server.reply = lambda body: answer("good") if body["messages"][0]["content"] == "a" else refuse(400)
    generator = a_generator(server, concurrency=1)
    assert complete(generator, "a") == {0: "good"}
    assert complete(generator, *"bcdefgh") == {}
    assert generator.usage.failed == {"HTTP 400": 7}


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"7",
        {"choices": []},
        {"choices": "text"},
        {"error": {"message": "overloaded"}},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"content": ["parts"]}}]},
    ],
    ids=str,
)
def test_a_malformed_answer_is_counted_and_never_becomes_text(server: Server, body: object) -> None:
    server.reply = in_turn(Reply(body))
    generator = a_generator(server)
    assert complete(generator, "Hi") == {}
    assert generator.usage.failed == {"malformed answer": 1}


def test_a_request_that_takes_too_long_is_tried_again_and_then_counted(server: Server) -> None:
    def reply(body: dict) -> Reply:
        server.released.wait(10)
        return answer("too late")

    server.reply = reply
    generator = a_generator(server, timeout=0.2, retries=1)
    assert complete(generator, "Hi") == {}
    assert (generator.usage.requests, generator.usage.failed) == (2, {"timeout": 1})


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once_and_names_its_variable(server: Server, status: int) -> None:
    server.reply = then_hang(server, [refuse(status, "wrong key")])
    with pytest.raises(CaiError, match="OPENAI_API_KEY") as caught:
        complete(a_generator(server, concurrency=1), *"abcdefgh")
    assert "wrong key" in caught.value.what
    assert len(server.asked) <= 2  # the second was on its way already


def test_a_row_that_moderation_forbids_does_not_stop_an_endpoint_that_has_answered(server: Server) -> None:
    server.reply = in_turn(answer("good"), refuse(403, "flagged"), answer("good again"))
    generator = a_generator(server)
    assert [complete(generator, text) for text in "abc"] == [{0: "good"}, {}, {0: "good again"}]
    assert generator.usage.failed == {"HTTP 403": 1}


def test_a_key_that_runs_out_in_the_middle_stops_the_run(server: Server) -> None:
    generator = a_generator(server, concurrency=1)
    complete(generator, "a")
    server.reply = lambda body: refuse(402, "no credit left")
    with pytest.raises(CaiError, match="HTTP 402: .*no credit left"):
        complete(generator, *"bcdefgh")


def test_an_unknown_model_stops_at_once_and_names_model_and_address(server: Server) -> None:
    server.reply = lambda body: refuse(404, "no such model")
    with pytest.raises(CaiError, match="judge") as caught:
        complete(a_generator(server), "Hi")
    assert server.base_url in caught.value.what


def test_an_endpoint_that_fails_every_row_stops_the_run_early(server: Server) -> None:
    server.reply = then_hang(server, [refuse(503, "model is loading")] * 9)  # four rows twice, and one try between them
    generator = a_generator(server, concurrency=2, retries=1)
    with pytest.raises(CaiError, match="4 rows in a row, at last with HTTP 503: .*model is loading"):
        complete(generator, *(f"row {number}" for number in range(200)))
    assert generator.usage.failed == {"HTTP 503": 4}
    assert len(server.asked) <= 11


def test_an_endpoint_that_goes_down_in_the_middle_stops_the_run_too(server: Server) -> None:
    generator = a_generator(server, concurrency=1, retries=0)
    assert len(complete(generator, *"abcde")) == 5
    server.reply = lambda body: refuse(502)
    with pytest.raises(CaiError, match="4 rows in a row"):
        complete(generator, *(f"row {number}" for number in range(50)))
    assert generator.usage.failed == {"HTTP 502": 4}


def test_failures_in_a_row_are_counted_over_small_calls(server: Server) -> None:
    server.reply = lambda body: refuse(500)
    generator = a_generator(server, retries=0, concurrency=4)
    assert complete(generator, "a", "b") == {}
    with pytest.raises(CaiError, match="4 rows in a row"):
        complete(generator, "c", "d")


def test_an_endpoint_that_is_not_there_is_named(server: Server) -> None:
    free_port = Server()
    free_port.server_close()
    with pytest.raises(CaiError, match="no connection") as caught:
        complete(a_generator(server, base_url=free_port.base_url, retries=0), *"abcdefgh")
    assert free_port.base_url in caught.value.what


def test_ctrl_c_drops_the_requests_that_wait(server: Server, monkeypatch) -> None:
    under_way = threading.Barrier(3, timeout=10)  # two requests and the reader

    def reply(body: dict) -> Reply:
        under_way.wait()
        server.released.wait(10)
        return answer("too late")

    def interrupted(self, wait):  # a real signal can fall between Python's check for one and its wait, and be seen late
        under_way.wait()
        raise KeyboardInterrupt

    server.reply = reply
    monkeypatch.setattr(endpoint.EndpointSession, "_done_now", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(a_generator(server, concurrency=2), *(f"row {number}" for number in range(50)))
    server.released.set()
    for thread in workers():
        thread.join(10)
    assert len(server.asked) == 2


def test_a_row_that_waits_for_its_retry_ends_with_the_call(server: Server) -> None:
    refused = threading.Event()

    def reply(body: dict) -> Reply:
        if body["messages"][0]["content"] == "bad":
            refused.set()
            return refuse(429, Retry_After="30")
        refused.wait(10)
        return answer("good")

    server.reply = reply
    rows = a_generator(server).generate(chats("bad", "a"), SAMPLING, ["k", "l"], 2)
    assert next(rows)[0] == 1
    rows.close()
    for thread in workers():
        thread.join(10)
    assert not workers()


def test_the_key_travels_as_a_bearer_token_and_shows_nowhere(server: Server) -> None:
    server.reply = in_turn(answer("good"), refuse(400, f"the key {KEY} is odd"), refuse(401, f"bad key {KEY}"))
    generator = a_generator(server, concurrency=1)
    complete(generator, "a")
    complete(generator, "b")
    with pytest.raises(CaiError) as caught:
        complete(generator, "c")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "bad key ***" in caught.value.what
    for shown in (repr(generator), repr(vars(generator)), repr(generator.usage), str(caught.value)):
        assert KEY not in shown


def test_a_server_on_this_machine_needs_no_key_and_never_gets_the_hub_token(server: Server, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert complete(a_generator(server), "a") == {0: "re: a"}
    assert "authorization" not in server.headers[0]


def a_workspace_of_somebody_else(workspace: Workspace, base_url: str, key_variable: str = "OPENAI_API_KEY") -> str:
    """The file of its settings: it names an endpoint, and the variable whose value it would like to have."""
    changes = [f"endpoint.base_url={base_url}", "endpoint.model=judge", f"endpoint.key_variable={key_variable}"]
    workspace.save_settings(load_settings("smoke", changes))
    return str(workspace.settings_file)


def test_no_key_goes_where_only_a_file_of_settings_points(server: Server, workspace) -> None:
    file = a_workspace_of_somebody_else(workspace, server.base_url)
    for settings in (load_settings(file), load_settings(file, ["endpoint.model=judge", "endpoint.retries=1"])):
        with pytest.raises(CaiError, match="only a settings file names that address") as caught:
            EndpointGenerator(settings.endpoint)
        assert f"--set endpoint.base_url={server.base_url}" in caught.value.todo
        assert f"CAI_ENDPOINT={server.base_url}" in caught.value.todo
        assert KEY not in str(caught.value)
    assert server.asked == []


def test_the_key_goes_where_a_command_the_environment_or_a_form_points(server: Server, workspace, monkeypatch) -> None:
    from cai_helpers.notebook import colab

    file, naming = a_workspace_of_somebody_else(workspace, server.base_url), f"endpoint.base_url={server.base_url}"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    complete(EndpointGenerator(load_settings(file, [naming]).endpoint), "by a command")
    complete(EndpointGenerator(colab.change(workspace, naming).endpoint), "by a form")
    later = change_settings(load_settings(file, [naming]), ["train.beta=0.2"])
    complete(EndpointGenerator(later.endpoint), "changed in something else afterwards")
    with pytest.raises(CaiError, match="only a settings file"):
        EndpointGenerator(colab.change(workspace, "train.beta=0.3").endpoint)
    monkeypatch.setenv("CAI_ENDPOINT", server.base_url.removesuffix("/v1"))
    with pytest.raises(CaiError, match="only a settings file"):
        EndpointGenerator(load_settings(file).endpoint)
    monkeypatch.setenv("CAI_ENDPOINT", server.base_url)
    complete(EndpointGenerator(load_settings(file).endpoint), "by the environment")
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 4


def test_a_file_of_settings_cannot_say_that_a_person_named_the_endpoint(server: Server, workspace) -> None:
    file = Path(a_workspace_of_somebody_else(workspace, server.base_url))
    for name in ("named_by_person", "_named_by_person"):
        values = json.loads(file.read_text())
        values["endpoint"][name] = True
        (file.parent / "forged.json").write_text(json.dumps(values))
        with pytest.raises(CaiError, match=name):
            load_settings(str(file.parent / "forged.json"))


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_KEY"])
def test_the_hub_token_goes_to_no_other_endpoint_whoever_names_it(server: Server, monkeypatch, variable: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv(variable, "hf_mine")
    with pytest.raises(CaiError, match="Hugging Face token"):
        a_generator(server, key_variable=variable)
    for host in ("evil-huggingface.co", "huggingface.co.evil.com", "huggingface.cloud"):
        with pytest.raises(CaiError, match="is not Hugging Face's"):
            a_generator(server, key_variable=variable, base_url=f"https://{host}/v1")
    for host in ("huggingface.co", "router.huggingface.co"):
        a_generator(server, key_variable=variable, base_url=f"https://{host}/v1")
    assert server.asked == []


def test_the_token_of_a_login_on_this_machine_is_known_as_the_hubs_under_any_name(
    server: Server, tmp_path, monkeypatch
) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "token").write_text("hf_of_the_login\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("MY_KEY", "hf_of_the_login")
    with pytest.raises(CaiError, match="MY_KEY holds your Hugging Face token"):
        a_generator(server, key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "another")
    assert complete(a_generator(server, key_variable="MY_KEY"), "a") == {0: "re: a"}


@pytest.mark.parametrize(
    "base_url",
    [
        "http://192.168.1.5:8000/v1",
        "http://judge.example.com/v1",
        "http://localhost.example.com/v1",
        "http://127.0.0.1.nip.io/v1",
        "http://router.huggingface.co/v1",
    ],
)
def test_a_key_travels_without_encryption_on_this_machine_alone(server: Server, base_url: str) -> None:
    with pytest.raises(CaiError, match="without https") as caught:
        a_generator(server, base_url=base_url)
    assert "ssh -L" in caught.value.todo
    for this_machine in ("http://localhost:1/v1", "http://127.0.0.2:1/v1", "http://[::1]:1/v1"):
        a_generator(server, base_url=this_machine)


@pytest.mark.parametrize(
    "base_url", ["http://localhost:1@evil.example.com/v1", "https://evil.example.com\\@huggingface.co"]
)
def test_an_address_that_looks_like_another_is_none(server: Server, base_url: str) -> None:
    with pytest.raises(CaiError, match="no web address"):
        a_generator(server, base_url=base_url)


def test_a_server_that_needs_no_key_works_from_the_file_of_settings(server: Server, workspace, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    file = a_workspace_of_somebody_else(workspace, server.base_url)
    assert complete(EndpointGenerator(load_settings(file).endpoint), "a") == {0: "re: a"}
    assert "authorization" not in server.headers[0]


def test_an_endpoint_that_sends_the_request_on_is_not_followed(server: Server) -> None:
    """Neither with the key nor without it; the address is named, so that a person can decide."""
    with Server() as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        address = f"{elsewhere.base_url}/chat/completions"
        server.reply = lambda body: Reply({}, 307, {"Location": address})
        with pytest.raises(CaiError, match=f"HTTP 307.*{address}") as caught:
            complete(a_generator(server), "a")
        elsewhere.shutdown()
        thread.join()
    assert "not carried on" in caught.value.todo
    assert (len(server.asked), elsewhere.asked) == (1, [])


def test_a_server_on_this_machine_is_asked_without_the_proxy(server: Server, monkeypatch) -> None:
    for variable in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert complete(a_generator(server, retries=0), "a") == {0: "re: a"}


def test_a_proxy_that_cannot_be_used_is_named_at_once(server: Server, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:9")
    with pytest.raises(CaiError, match="gopher") as caught:
        a_generator(server, base_url="https://api.example.com/v1")
    assert "ALL_PROXY" in caught.value.todo


def test_an_endpoint_is_asked_while_the_hub_is_offline(server: Server) -> None:
    from huggingface_hub import is_offline_mode

    assert is_offline_mode()  # by conftest.py: only the Hub is out of reach then
    assert complete(a_generator(server), "a") == {0: "re: a"}


def test_white_space_that_keeps_the_line_open_does_not_outlast_the_timeout(server: Server) -> None:
    """Gateways send it while a model thinks; each read is quick, and the answer never comes."""

    class Dripping(Reply):
        def parts(self) -> Iterator[bytes]:
            while not server.released.wait(0.05):
                yield b" "

    server.reply = lambda body: Dripping(b"", headers={"Content-Length": "100000"})
    generator = a_generator(server, timeout=0.3, retries=0)
    started = time.monotonic()
    assert complete(generator, "a") == {}
    assert time.monotonic() - started < 3
    assert generator.usage.failed == {"timeout": 1}


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, {"error": {"message": "no such key"}}, "application/json", "no such key"),
        (500, {"error": "out of memory"}, "application/json", "out of memory"),
        (400, {"object": "error", "message": "too long", "code": 400}, "application/json", "too long"),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "application/json", "field required"),
        (429, [{"error": {"message": "slow down"}}], "application/json", "slow down"),
        (503, {"status": "loading"}, "application/json", '{"status": "loading"}'),
        (500, b"plain words", "text/plain", "plain words"),
        (502, b"<html><title>502 Bad\nGateway</title>", "text/html", "a web page titled '502 Bad Gateway'"),
        (502, b"<!DOCTYPE html><p>Oh", "", "a web page"),
        (500, b"", "", ""),
        (500, b"\xff[", "application/json", "\N{REPLACEMENT CHARACTER}["),
        (500, b"[" * 200_000, "application/json", None),
        (307, b"", "", "it sends requests on to an address that it does not name"),
    ],
    ids=str,
)
def test_what_an_error_body_says_is_found_in_every_form(status, body, kind, said) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    failure = endpoint_answers.read_response(status, {"content-type": kind}, content)
    assert (failure.status, failure.reason) == (status, f"HTTP {status}")
    assert said is None or failure.text == said


def test_an_error_inside_an_answer_that_http_calls_a_success_counts_as_its_own_status(server: Server) -> None:
    server.reply = in_turn(Reply({"error": {"message": "slow down", "code": 429}}), answer("at last"))
    assert complete(a_generator(server), "Hi") == {0: "at last"}


@pytest.mark.parametrize(
    ("reply", "reason", "todo"),
    [
        (Reply(b"<html><title>Hotel WiFi</title>", 200, {"Content-Type": "text/html"}), "Hotel WiFi", "log in"),
        (Reply({"object": "list"}), "malformed answer", "OpenAI-compatible"),
        (refuse(429, "slow down"), "HTTP 429: slow down", "endpoint.concurrency"),
        (refuse(402, "pay"), "HTTP 402: pay", "credit"),
        (refuse(500, ""), "HTTP 500", "its log"),
        (refuse(503, "loading"), "HTTP 503: loading", "wait"),
        (refuse(400, "unknown parameter"), "HTTP 400: unknown parameter", "endpoint.model"),
        (refuse(405, "POST?"), "HTTP 405.*POST", "endpoint.base_url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_endpoint_that_answers_nothing_else_is_described_with_what_to_do(server, reply, reason, todo) -> None:
    server.reply = lambda body: reply
    with pytest.raises(CaiError, match=reason) as caught:
        complete(a_generator(server, retries=0, concurrency=4), *"abcdef")
    assert todo in caught.value.todo


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://a.com/openai", "https://a.com/openai/v1/chat/completions"),
        ("https://a.com/x/chat/completions?api-version=1", "https://a.com/x/chat/completions?api-version=1"),
    ],
)
def test_what_is_missing_of_the_address_is_added(base_url: str, url: str) -> None:
    assert endpoint_request.completions_url(base_url) == url


@pytest.mark.parametrize("protocol", ["single/short", "two_step/short"])
def test_rows_that_were_answered_before_an_endpoint_fails_for_good_are_kept(server, workspace, protocol) -> None:
    """The first pair, then one batch: a row, a refused row, a row, and no more. The next call makes the rest."""
    from cai_helpers.stages.generate import generate_pairs
    from cai_helpers.store import read_jsonl

    good = "CRITIQUE: It could be kinder.\nREVISION: I am glad to help you with that today."
    replies = {
        "single/short": [answer(good), answer(good), refuse(400), answer(good), refuse(401, "used up")],
        "two_step/short": [
            *(answer("It could be kinder."), answer("I am glad to help you with that today.")),
            *(answer("KEEP_ORIGINAL"), refuse(400), answer("KEEP_ORIGINAL"), refuse(401, "used up")),
        ],
    }
    server.reply = then_hang(server, [answer("OK"), *replies[protocol]])  # the first is asked whether it is there
    changes = ["generate.critic=api", f"endpoint.base_url={server.base_url}", "endpoint.model=judge", "threads=1"]
    changes += ["prompts.limit=8", "endpoint.concurrency=1", f"generate.protocol={protocol}"]
    settings = load_settings("smoke", changes)
    with pytest.raises(CaiError, match="used up"):
        generate_pairs(settings, workspace)
    assert len(list(read_jsonl(workspace.traces))) == 3
    server.reply = lambda body: answer("KEEP_ORIGINAL")
    assert (generate_pairs(settings, workspace).rows_now, len(list(read_jsonl(workspace.traces)))) == (5, 8)


def test_weighings_that_were_answered_before_an_endpoint_fails_for_good_are_kept(server: Server) -> None:
    from cai_helpers.critique.constitution import load_constitution
    from cai_helpers.scoring.feedback import Feedback
    from cai_helpers.scoring.questions import Question

    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}
    listed = [{"token": token, "logprob": value} for token, value in (("A", -0.25), ("B", -1.5))]
    choice["logprobs"] = {"content": [{"token": "A", "logprob": -0.25, "top_logprobs": listed}]}
    server.reply = then_hang(server, [Reply({"choices": [choice]})] * 4 + [refuse(401)])
    letters = EndpointLetters(Endpoint(base_url=server.base_url, model="judge", concurrency=1).by_person())
    feedback = Feedback(letters, load_constitution(), principles=1, seed=0)
    weighed = []
    with pytest.raises(CaiError, match="refuses the key"):
        weighed.extend(feedback.iterate([Question(chats(text)[0], ("yes", "no")) for text in "abcd"]))
    assert [index for index, _ in weighed] == [0, 1]


def test_the_command_sends_no_token_for_a_workspace_of_somebody_else(server: Server, workspace, monkeypatch) -> None:
    """Through `cai generate`: exit code 1, what to do, and not a word to the endpoint; named again, it works."""
    from typer.testing import CliRunner

    from cai_helpers.cli import app

    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    a_workspace_of_somebody_else(workspace, server.base_url, "HF_TOKEN")
    command = ["generate", "--workspace", str(workspace.root), "--limit", "1", "--set", "generate.critic=api"]
    stolen = CliRunner().invoke(app, command)
    assert (stolen.exit_code, server.asked) == (1, [])
    assert "HF_TOKEN holds your Hugging Face token" in stolen.output
    command += ["--set", "endpoint.key_variable=OPENAI_API_KEY"]
    unnamed = CliRunner().invoke(app, command)
    assert (unnamed.exit_code, server.asked) == (1, [])
    assert f"repeat --set endpoint.base_url={server.base_url}" in unnamed.output
    server.reply = lambda body: answer("CRITIQUE: It could be kinder.\nREVISION: I am glad to help you today.")
    assert CliRunner().invoke(app, [*command, "--set", f"endpoint.base_url={server.base_url}"]).exit_code == 0
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"base_url": None}, KEY, "needs endpoint.base_url"),
        ({"model": None}, KEY, "needs endpoint.model"),
        ({"base_url": "localhost:8000/v1"}, KEY, "no web address"),
        ({"base_url": "http://localhost:99999/v1"}, KEY, "no web address"),
        ({"base_url": "http://[::1/v1"}, KEY, "no web address"),
        ({"base_url": "https://api.example.com/v1"}, "", "OPENAI_API_KEY is not set"),
        ({"base_url": "https://api.example.com/v1"}, "två\nord", "holds no usable key"),
        ({"key_variable": "JUDGE_KEY", "base_url": "https://api.example.com/v1"}, KEY, "JUDGE_KEY is not set"),
        ({"key_variable": KEY}, KEY, "not the name of an environment variable"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_sent(
    server: Server, monkeypatch, settings: dict, key: str, message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(CaiError, match=message) as caught:
        a_generator(server, **settings)
    assert KEY not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7.0), ("-1", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("", None)],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(header: str, expected: float | None) -> None:
    assert endpoint_answers.retry_after({"retry-after": header}) == expected


def test_pauses_grow_up_to_a_cap_and_the_same_row_pauses_alike() -> None:
    busy = endpoint_answers.Failure("HTTP 429", "", may_pass=True)
    first, third, late = (endpoint._pause(busy, tries, "k") for tries in (1, 3, 20))
    assert 0.25 <= first <= 0.75 < 1.0 <= third <= 3.0
    assert late == 60.0
    assert endpoint._pause(busy, 1, "k") == first
    assert endpoint._pause(busy._replace(retry_after=3600.0), 1, "k") == 60.0


def test_an_endpoint_criticises_local_drafts_and_its_failures_and_cost_are_reported(server, workspace):
    """Through the stage: a row that the endpoint fails for is left open, and the next call makes it."""
    from cai_helpers.stages.generate import generate_pairs

    broken = threading.Event()

    def reply(body: dict) -> Reply:
        if not broken.is_set() and "CRITIQUE" in body["messages"][-1]["content"]:  # not the trial before the run
            broken.set()
            return refuse(400, "filtered")
        return answer("CRITIQUE: It could be kinder.\nREVISION: I am glad to help you with that today.")

    server.reply = reply
    changes = ["generate.critic=api", f"endpoint.base_url={server.base_url}", "endpoint.model=judge", "threads=1"]
    changes += [
        "prompts.limit=6",
        "endpoint.concurrency=2",
        "endpoint.output_price=1000",
        "generate.protocol=single/short",
    ]
    settings = load_settings("smoke", changes)
    first = generate_pairs(settings, workspace)
    assert (first.pairs, first.failed, first.outcomes) == (5, 1, {"revised": 5})
    assert dict(first.lines())["endpoint failures"] == "HTTP 400 1"
    assert dict(first.lines())["endpoint tokens"] == "50 in, 20 out"
    assert dict(first.lines())["endpoint cost"].startswith("0.0200")
    second = generate_pairs(settings, workspace)
    assert (second.pairs, second.failed, second.rows_now) == (6, 0, 1)


def test_a_letter_is_weighed_by_its_log_probabilities(server: Server) -> None:
    def weigh(body: dict) -> Reply:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}
        listed = [{"token": token, "logprob": value} for token, value in (("A", -0.25), ("B", -1.5))]
        choice["logprobs"] = {"content": [{"token": "A", "logprob": -0.25, "top_logprobs": listed}]}
        return Reply({"id": "1", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})

    server.reply = weigh
    letters = EndpointLetters(Endpoint(base_url=server.base_url, model="judge").by_person())
    assert dict(letters.log_odds(chats("(A) or (B)?", "(A) or (B)?"))) == {0: 1.25, 1: 1.25}
    assert [(body["logprobs"], body["top_logprobs"]) for body in server.asked] == [(True, 20)] * 2


def test_a_weighing_that_the_endpoint_leaves_out_stops_and_says_so(server: Server) -> None:
    server.reply = lambda body: refuse(422)
    letters = EndpointLetters(Endpoint(base_url=server.base_url, model="judge", retries=0).by_person())
    with pytest.raises(CaiError, match=r"left 1 of 1 questions unanswered \(HTTP 422 1\)"):
        list(letters.log_odds(chats("(A) or (B)?")))


def test_an_endpoint_drafts_and_criticises_without_a_model_here_and_never_more_at_once_than_allowed(
    server, workspace, monkeypatch
):
    """Drafts that come from elsewhere are another run: the fingerprint says so, and names where they came from."""
    from cai_helpers.critique import critic
    from cai_helpers.errors import SettingsChanged
    from cai_helpers.stages.generate import generate_pairs
    from cai_helpers.store import read_jsonl

    monkeypatch.setattr(critic, "load_stage2", None)  # it would fail
    server.reply = lambda body: (
        answer("CRITIQUE: It could be kinder.\nREVISION: I am glad to help you with that today.")
        if "CRITIQUE" in body["messages"][-1]["content"]
        else answer("Here is what I would do about it.")
    )
    changes = ["generate.drafter=api", "generate.critic=api", f"endpoint.base_url={server.base_url}"]
    changes += ["endpoint.model=fleet", "threads=1", "prompts.limit=12", "endpoint.concurrency=3"]
    settings = load_settings("smoke", [*changes, "generate.protocol=single/short"])
    report = generate_pairs(settings, workspace)
    assert (report.pairs, report.failed, report.outcomes) == (12, 0, {"revised": 12})
    rows = list(read_jsonl(workspace.traces))
    assert {row["draft"] for row in rows} == {"Here is what I would do about it."}
    lengths = [sum(len(turn["content"]) for turn in row["prompt"]["messages"]) for row in rows]
    assert lengths[0] > 2 * lengths[-1]  # the longest first, whichever was answered first
    assert server.most_in_flight <= 3
    assert dict(report.lines())["endpoint requests"].startswith("25,")  # a greeting, and two a pair
    with pytest.raises(SettingsChanged):
        generate_pairs(change_settings(settings, ["generate.drafter=local"]), workspace)


def test_a_slow_endpoint_holds_up_the_drafts_that_would_wait_for_it(server, smoke) -> None:
    """Back-pressure: no more rows are begun than drafter and endpoint have room for."""
    from cai_helpers.models.flow import flow
    from cai_helpers.models.generator import Request

    begun, most = 0, 0
    generator = a_generator(server, concurrency=2)

    def row(number: int):
        nonlocal begun, most
        begun += 1
        most = max(most, begun)
        [completion] = yield [Request(generator, chats(str(number))[0], SAMPLING, f"{number}/critique")]
        begun -= 1
        return completion.text

    ended = [text for texts in flow(map(row, range(20)), 32) for text in texts]
    assert sorted(ended) == sorted(f"re: {number}" for number in range(20))
    assert most == 4
