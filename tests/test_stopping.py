"""A stop that Python would drop, since it arrived while a finalizer ran, is not lost."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import signal, sys, time
from cai_helpers import __main__ as start

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def app():
    made = Finalized()
    del made
    time.sleep(20)

import types
sys.modules["cai_helpers.cli"] = types.SimpleNamespace(app=app)
start.main()
"""


def test_a_stop_that_arrives_in_a_finalizer_stops_all_the_same():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=15)
    assert ended.returncode == 130
    assert ended.stderr == "Stopped by hand.\nWhat is on disk stays: run the same again to go on.\n"
