"""The pages: complete, self-contained, honest about what is missing, and inert whatever the models wrote."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from cai_helpers.evaluation.comparison import compare, compare_by_category
from cai_helpers.evaluation.figures import Judgement, Response
from cai_helpers.pages.evaluation_picture import save_evaluation_plot
from cai_helpers.pages.run_page import write_run_report
from cai_helpers.pages.training_picture import save_training_plot, training
from cai_helpers.schema import StageReport, Target
from cai_helpers.stages.analyze import analyze_pairs
from cai_helpers.stages.curate import CurateReport
from cai_helpers.stages.evaluate import EvaluateReport
from cai_helpers.store import write_jsonl
from cai_helpers.training.watch.alarms import Alarm
from cai_helpers.workspace import Workspace

ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>\"' & {{ 7 * 7 }} </td></table>"
FIRST = {"step": 1, "loss": 0.693, "accuracy": 0.5, "margin": 0.0, "logps_chosen": -20.0, "grad_norm": None}
HISTORY = [
    FIRST | {"rewards_chosen": 0.0, "rewards_rejected": 0.0, "logps_rejected": -22.0},
    FIRST | {"step": 2, "loss": 0.5, "accuracy": 0.9, "margin": 0.4, "grad_norm": 1.5},
    {"step": 2, "eval_loss": 0.52, "eval_accuracy": 0.8, "eval_margin": 0.3},
]


class Page(HTMLParser):
    """Tags and attributes that a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class Note(StageReport):
    """Stands for the report of a stage that is not looked into."""

    name: str
    scorer: str = "a scorer"  # which the score stage notes

    def title(self) -> str:
        return f"Title of {self.name}"

    def lines(self):
        return [("what it did", ATTACK)]


def pairs(count=40):
    return [
        {
            "prompt": f"{number} {ATTACK}",
            "base_response": f"{ATTACK} \ud800",
            "revised_response": f"Rather {ATTACK} {number}",
            "base_score": 0.0,
            "revised_score": (-1.0) ** number + 0.5,
            "chosen": "revised" if number % 2 == 0 else "base",
            "critic_notes": ATTACK,
            "principle_ids": [ATTACK, "$\\frac"],
            "category": ATTACK,
            "outcome": "revised",
        }
        for number in range(count)
    ]


def seal(workspace, name, report=None):
    workspace.seal(name, {}, [], report or Note(name=name))


def seal_curation(workspace, kept, min_pairs=60):
    counts = {
        "dropped": {},
        "train": kept,
        "eval": 0,
        "by_category": {},
        "chosen": {},
        "refusals_chosen": 0,
        "refusals_rejected": 0,
        "overruled": (0, 0, 0, 0),
        "one_sided": {},
        "gate": [],
        "trust": None,
    }
    seal(workspace, "curate", CurateReport(generated=40, kept=kept, min_pairs=min_pairs, **counts))


def response(number):
    return Response(
        id=str(number),
        category="helpful" if number % 2 else "harmless",
        prompt=ATTACK,
        stage2=ATTACK,
        stage3=f"{number} {ATTACK}",
        stage2_score=0.0,
        stage3_score=float(number - 3),
        stage2_refuses=False,
        stage3_refuses=number == 5,
        stage2_finish="stop",
        stage3_finish="stop",
    )


def seal_evaluation(workspace, verdict="better"):
    rows = [response(number) for number in range(10)]
    write_jsonl(workspace.responses, (row.model_dump() for row in rows))
    overall, by_category = compare(rows), compare_by_category(rows)
    save_evaluation_plot(overall, by_category, workspace.picture("refusals"))
    judgement = Judgement(verdict=verdict, reason="it wins often")
    report = EvaluateReport(
        scorer="a scorer",
        notes=[],
        judgement=judgement,
        overall=overall,
        by_category=by_category,
        generated_now=0,
        seconds=0.0,
    )
    seal(workspace, "evaluate", report)


@pytest.fixture(scope="module")
def complete_root(smoke, tmp_path_factory):
    """A workspace in which every stage has run, made once."""
    workspace = Workspace(tmp_path_factory.mktemp("complete") / "run")
    write_jsonl(workspace.pairs, pairs())
    for name in ("generate", "score", "train"):
        seal(workspace, name)
    seal_curation(workspace, kept=40)
    analyze_pairs(smoke, workspace)
    write_jsonl(workspace.history, HISTORY)
    seal_evaluation(workspace)
    return workspace.root


@pytest.fixture
def complete(complete_root, tmp_path):
    """A copy of it."""
    shutil.copytree(complete_root, tmp_path / "complete")
    return Workspace(tmp_path / "complete")


def assert_inert_and_self_contained(text):
    page = Page(text)
    assert page.open == []
    assert not {"script", "iframe", "object", "link"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/png;base64,") or source == "pairs.html" for source in page.sources)
    assert "default-src 'none'" in text
    assert "49" not in re.findall(r"&#39; &amp; (\S+) ", text)


def test_the_page_of_the_run_holds_everything_and_is_inert(smoke, complete):
    text = write_run_report(smoke, complete).read_text(encoding="utf-8")
    assert_inert_and_self_contained(text)
    verdict = ["Better", "it wins often", "gibberish can win it", "harmful requests (5)"]
    examples = ["most improved", "most worsened", "at random"]
    for expected in (
        *verdict,
        *examples,
        "Title of generate",
        "How to read this",
        "base: embedded:chat",
        "transformers",
    ):
        assert expected in text
    assert text.count("data:image/png;base64,") == 3


def test_the_page_of_the_pairs_is_inert(complete):
    text = (complete.reports / "pairs.html").read_text(encoding="utf-8")
    assert_inert_and_self_contained(text)
    assert "Revisions that lost most" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert text.count("data:image/png;base64,") == 5


def test_a_run_that_stopped_before_training_says_why_and_hides_older_results(smoke, complete):
    text = write_run_report(smoke, complete, stopped="12 usable pairs <b>only</b>").read_text(encoding="utf-8")
    assert_inert_and_self_contained(text)
    assert "Training was refused" in text
    assert "12 usable pairs &lt;b&gt;only&lt;/b&gt;" in text
    assert "train: not run" in text
    assert "Title of train" not in text
    assert "it wins often" not in text
    assert "revision wins" in text  # the examples are pairs instead


def test_too_few_pairs_are_the_reason_even_when_nobody_passes_it(smoke, workspace):
    seal_curation(workspace, kept=7)
    text = write_run_report(smoke, workspace).read_text(encoding="utf-8")
    assert "7 usable pairs are left, and training needs 60" in text


def test_an_empty_workspace_has_a_page_that_says_what_to_run(smoke, workspace):
    text = write_run_report(smoke, workspace).read_text(encoding="utf-8")
    assert_inert_and_self_contained(text)
    assert "Run `cai generate` or notebook 02_generate_pairs" in text
    assert "Nothing was trained" in text


class TrainNote(Note):
    """A training of which the page shows alarms and targets."""

    alarms: list[Alarm]
    targets: list[Target]


def test_alarms_and_targets_of_the_training_stand_on_the_page(smoke, complete):
    alarm = Alarm(
        name="stuck at chance", step=50, threshold="60%", evidence=f"accuracy 51% {ATTACK}", advice="Read pairs"
    )
    met = Target(name="epochs", aim="3 done", found="3", ok=True)
    missed = Target(name="final loss", aim="below 0.8", found="1.3350", ok=False)
    seal(complete, "train", TrainNote(name="train", alarms=[alarm], targets=[met, missed]))
    text = write_run_report(smoke, complete).read_text(encoding="utf-8")
    assert_inert_and_self_contained(text)
    assert "Alarm: stuck at chance, from step 50" in text
    whole = '<span style="white-space:nowrap">below 0.8</span>'
    assert f"<td>final loss</td><td>{whole}</td><td>1.3350</td><td><b>falls short</b>" in text
    assert "<td>3</td><td>ok</td>" in text
    assert "No alarm was raised." not in text


def test_a_trained_run_without_an_evaluation_says_so(smoke, complete):
    complete.archive("evaluate", [complete.evaluation_dir])
    text = write_run_report(smoke, complete).read_text(encoding="utf-8")
    assert "Trained, but not evaluated" in text


def test_results_that_are_older_than_their_inputs_are_marked(smoke, complete):
    complete.adapter.mkdir(parents=True)
    (complete.adapter / "adapter_config.json").write_text("{}")
    text = write_run_report(smoke, complete).read_text(encoding="utf-8")
    assert "Out of date: the adapter changed since. Run `cai evaluate` again." in text


def test_long_texts_are_shortened_and_say_by_how_much(smoke, workspace):
    rows = pairs()
    rows[0] |= {"revised_response": "x" * 4000, "revised_score": 9.0}
    write_jsonl(workspace.pairs, rows)
    analyze_pairs(smoke, workspace)
    assert "… (2,500 more characters)" in (workspace.reports / "pairs.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("rows", [[], HISTORY[:1], HISTORY])
def test_training_curves_are_drawn_from_however_few_rows(rows):
    figure = training(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["Loss", "Accuracy"]


def test_the_training_plot_is_a_png_in_reports(workspace):
    write_jsonl(workspace.history, HISTORY)
    path = save_training_plot(workspace)
    assert path == workspace.reports / "training.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_names_its_models_as_a_person_would(workspace, smoke):
    page = write_run_report(smoke, workspace).read_text(encoding="utf-8")
    assert "base model embedded:chat · Stage 2: embedded:stage2 · reward model embedded:reward<" in page
