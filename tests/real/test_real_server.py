"""Real servers on this machine's loopback: an endpoint that criticises, is killed and comes back; AI feedback by letters."""

from __future__ import annotations

import math
import signal
import socket
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_run import HERE, PATIENCE, Run, figure, read_rows, started, wait_until, written

pytestmark = pytest.mark.real


@contextmanager
def serving(command: list[str], port: int, ready: str, log: Path):
    """A server that is ready for requests; it is killed at the end of the block."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    with started(command, log) as process:
        wait_until(answers, process)
        yield process


def transformers_serve(base: Path, port: int, log: Path):
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(base), "--host", "127.0.0.1"]
    return serving([*command, "--port", str(port), "--device", "cpu", "--dtype", "float32"], port, "/health", log)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def asks(base: Path, port: int) -> list[str]:
    """The endpoint's settings, for small greedy answers."""
    values = {
        "endpoint.base_url": f"http://127.0.0.1:{port}/v1",
        "endpoint.model": str(base),
        "endpoint.concurrency": 2,
        "endpoint.retries": 0,
        "endpoint.timeout": PATIENCE,
        "generate.temperature": 0,
        "generate.protocol": "two_step/short",
        "generate.draft_tokens": 20,
        "generate.critic_tokens": 24,
        "generate.batch_size": 2,
    }
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def test_rows_answered_before_a_server_dies_are_kept_and_the_next_call_goes_on(
    real_base, settings_file, port, tmp_path
):
    run = Run(tmp_path / "run", settings_file)
    options = ["--limit", "7", *asks(real_base, port)]
    by_endpoint = [*options, "--set", "generate.critic=api"]
    traces = run.root / "pairs" / "traces.jsonl"
    with transformers_serve(real_base, port, tmp_path / "server.log") as server:
        command = run.command("generate", *by_endpoint)
        with started(command, tmp_path / "generate.log", online=True) as process:
            wait_until(lambda: written(traces) >= 3, process)
            server.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)
            said = process.said()
    kept = traces.read_bytes()
    assert 3 <= kept.count(b"\n") < 7, said
    assert not (run.root / "manifests" / "generate.json").exists()
    assert "Traceback" not in said
    unanswered = 7 - kept.count(b"\n")
    assert f"{unanswered}; run it again to try them" in said or "rows in a row" in said

    with transformers_serve(real_base, port, tmp_path / "server2.log"):
        said = run("generate", *by_endpoint, online=True)
    assert f"{kept.count(bytes([10]))} of 7 pairs are there already" in said
    assert traces.read_bytes().startswith(kept)
    assert figure(said, "pairs generated") == "7"
    assert "complete since" in run("generate", *by_endpoint)  # and needs no server to say so

    # the endpoint holds the same model, so that greedy critics here and there must say the same
    local = Run(tmp_path / "local", settings_file)
    local("generate", *options)
    by_id = {row["id"]: row for row in local.rows("pairs/traces.jsonl")}
    for row in run.rows("pairs/traces.jsonl"):
        assert row["draft"] == by_id[row["id"]]["draft"]
        assert row["critic_outputs"] == by_id[row["id"]]["critic_outputs"]
        assert row["outcome"] == by_id[row["id"]]["outcome"]


def test_ai_feedback_from_a_server_without_log_probabilities_is_refused_in_plain_words(
    real_base, scored, port, tmp_path
):
    run = scored[0].copy("feedback-without-log-probabilities")
    with transformers_serve(real_base, port, tmp_path / "server.log"):
        options = [*asks(real_base, port), "--set", "score.by=ai_feedback", "--set", "score.feedback_model=api"]
        said = run("score", *options, code=1, online=True)
    assert "gives no log-probabilities, which AI feedback is read from" in said
    assert "Traceback" not in said


def test_ai_feedback_scores_follow_from_the_letters_a_server_gave(real_base, scored, port, tmp_path):
    run = scored[0].copy("feedback")
    log = tmp_path / "answers.jsonl"
    command = [sys.executable, str(HERE / "logprob_server.py"), str(real_base), str(port), str(log)]
    options = [*asks(real_base, port), "--set", "score.by=ai_feedback", "--set", "score.feedback_model=api"]
    options += ["--set", "score.feedback_principles=1"]
    with serving(command, port, "/", tmp_path / "server.log"):
        run("score", *options, online=True)
    weighed = [pair for pair in run.rows("pairs/pairs.jsonl") if pair["outcome"] == "revised"]
    answers = read_rows(log)
    assert weighed
    assert len(answers) == 1 + 2 * len(weighed)  # asked once whether it is there; then one principle, both orders
    for pair in weighed:
        draft_first = odds(answers, f"(A) {pair['base_response']}\n\n(B) {pair['revised_response']}\n")
        revision_first = odds(answers, f"(A) {pair['revised_response']}\n\n(B) {pair['base_response']}\n")
        difference = pair["base_score"] - pair["revised_score"]
        assert difference == pytest.approx((draft_first - revision_first) / 2, abs=1e-6)
        assert pair["chosen"] == ("revised" if difference < 0 else "base")


def odds(answers: list[dict], options: str) -> float:
    """log P(A) − log P(B) at the first token of the answer that either letter is an alternative to."""
    (answer,) = [row["answer"] for row in answers if options in row["request"]["messages"][0]["content"]]
    for place in answer["choices"][0]["logprobs"]["content"]:
        shares = dict.fromkeys("AB", 0.0)
        for alternative in place["top_logprobs"]:
            if (letter := alternative["token"].strip(" ()*.\n\t")) in shares:
                shares[letter] += math.exp(alternative["logprob"])
        if any(shares.values()):
            least = min(alternative["logprob"] for alternative in place["top_logprobs"])
            first, second = (max(math.log(share), least) if share else least for share in shares.values())
            return first - second
    raise AssertionError(f"no letter in {answer}")
