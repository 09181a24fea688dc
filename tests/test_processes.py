import os
import subprocess
import sys

from cai_helpers.machine.processes import Processes
from cai_helpers.store import read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

CHANGES = ["prompts.limit=16", "generate.batch_size=4", "threads=1", "generate.protocol=single/short"]


def generate(workspace: Workspace, launcher: list[str]) -> dict[str, dict]:
    options = [part for change in CHANGES for part in ("--set", change)]
    command = [*launcher, "-m", "cai_helpers.cli", "generate", "--preset", "smoke", "--workspace", str(workspace.root)]
    # the launcher must not wait for a GPU or a network name that is not there
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(read_jsonl(workspace.traces))
    assert len(rows) == 16
    return {row["id"]: row for row in rows}


def test_two_processes_yield_the_rows_of_one(tmp_path):
    alone = generate(Workspace(tmp_path / "one"), [sys.executable])
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    shared = generate(Workspace(tmp_path / "two"), launcher)
    assert shared == alone
    assert not list((tmp_path / "two" / "pairs").glob("traces.*.jsonl"))
    assert (tmp_path / "two" / "manifests" / "generate.json").exists()


def test_every_row_belongs_to_exactly_one_process():
    shares = [Processes(index, 3) for index in range(3)]
    owners = [[share.index for share in shares if share.owns(f"{n:016x}")] for n in range(90)]
    assert owners == [[n % 3] for n in range(90)]


def test_rows_that_killed_processes_left_in_their_shares_are_taken_in(tmp_path):
    """A share with a torn last row, and a row that is in traces.jsonl already."""
    from cai_helpers.stages.generate import _merge_shares

    workspace = Workspace(tmp_path)
    write_jsonl(workspace.traces, [{"id": "a"}])
    write_jsonl(workspace.pairs_dir / "traces.0.jsonl", [{"id": "a"}, {"id": "b"}])
    (workspace.pairs_dir / "traces.1.jsonl").write_bytes(b'{"id": "c"}\n{"id": "d", "dra')
    _merge_shares(workspace)
    assert [row["id"] for row in read_jsonl(workspace.traces)] == ["a", "b", "c"]
