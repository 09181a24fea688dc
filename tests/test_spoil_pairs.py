import random
import sys

import spoil_pairs

from cai_helpers.analysis.diagnosis import diagnose
from cai_helpers.analysis.frame import read_frame
from cai_helpers.analysis.statistics import analyze_frame
from cai_helpers.store import read_jsonl, write_jsonl

TOPICS = "a ladder, the red kettle, my old bicycle, the kitchen scales, a garden hose, the wall clock".split(", ")


def good_rows(count: int):
    draw = random.Random(1)
    for number in range(count):
        topic = draw.choice(TOPICS)
        yield {
            "prompt": f"How do I repair {topic} number {number} without tools?",
            "base_response": f"Break {topic} open with force and see what happens to part {number}.",
            "revised_response": f"Look at {topic} closely, tighten part {number} by hand, then try it again slowly.",
            "base_score": 0.0,
            "revised_score": draw.uniform(0.5, 3),
            "chosen": "revised",
            "outcome": "revised",
            "principle_ids": [f"P{number % 12}"],
        }


def test_a_spoiled_file_has_the_faults_of_the_first_attempt_and_the_good_one_none(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_jsonl(good, good_rows(300))
    monkeypatch.setattr(sys, "argv", ["spoil_pairs.py", str(good), str(bad)])
    spoil_pairs.main()
    assert set(next(read_jsonl(bad))) == {
        *("prompt", "base_response", "revised_response", "base_score", "revised_score", "chosen"),
        *("critic_notes", "principle_ids"),
    }
    named = {finding.name for finding in diagnose(analyze_frame(read_frame(bad)))}
    wanted = {"fallback masquerading as revision", "principle collapse", "prompts without context"}
    assert wanted <= named
    assert named & {"labels near chance", "revisions lose"}
    assert not wanted & {finding.name for finding in diagnose(analyze_frame(read_frame(good)))}
