"""What is written for a shell, in the words of a notebook: there is no command line to type `cai train --fresh` into."""

from __future__ import annotations

import re

# Where a command's work is done here.
_PLACES = {
    "doctor": "notebook 00 (Is this machine ready?)",
    "plan": "notebook 00 (What will it take?)",
    "download": "notebook 01",
    "preflight": "notebook 02 (Will it go through?)",
    "bakeoff": "the bake-off of notebook 02 (Which way of asking works?)",
    "principles": "notebook 02 (Your own constitution)",
    "generate": "notebook 02 (Draft, critique, revise)",
    "calibrate": "notebook 02 (Can the reward model be trusted?)",
    "score": "notebook 02 (Score)",
    "curate": "notebook 03 (Curate)",
    "inspect": "notebook 03 (Look and overrule)",
    "analyze": "notebook 03 (Analyse)",
    "train": "notebook 04 (Train)",
    "evaluate": "notebook 05 (Compare)",
    "chat": "notebook 05 (Talk to both)",
    "report": "notebook 06 (The report)",
    "export": "notebook 06 (Pack)",
    "verify": "notebook 06 (Pack)",
    "push": "notebook 06 (Put it on the Hub)",
    "run": "the notebook run_all",
}
# What a command offers as flags, and a notebook as calls and fields of its form; before all else.
_REMEDIES = (
    (
        re.compile(
            r"run `cai train --fresh` to move the old results to archive/ and start over, or give another --workspace"
        ),
        'start over with colab.start_over(workspace, "train"), which moves the old training to archive/, or type another '
        "run_name in the form",
    ),
    (
        re.compile(
            r"run `cai \w+ --fresh` to move the old results to archive/ and start over, or give another --workspace"
        ),
        "start over with colab.start_over(workspace), which moves the old work to archive/, or type another run_name in the "
        "form",
    ),
    (
        re.compile(r"--preset smoke runs (.*?) \(in notebook 00: preset = \"smoke\"\)"),
        r'preset = "smoke" in the form runs \1',
    ),
    (re.compile(r"say so with --cpu \(in a notebook: (colab\.change\(.*?\))\)"), r"say so: settings = \1"),
    (
        re.compile(r"with a Stage-2 adapter try --adapter none"),
        "with a Stage-2 adapter try without it (stage2_adapter empty)",
    ),
    (re.compile(r"--adapter none: start from the base model"), "stage2_adapter empty: start from the base model"),
    (re.compile(r"\(models\.base, --model\)"), "(base_model in the form)"),
    (re.compile(r"([Gg]ive|[Tt]ake) another --workspace"), r"\1 another run_name in the form"),
    (re.compile(r"same command or cell"), "cell"),
    (re.compile(r"\b([Rr])un the same again"), r"\1un this cell again"),
)
_COMMAND = re.compile(r"`cai (?P<name>[a-z]+)(?P<rest>[^`]*)`")
_IN_WORDS = (
    (re.compile(r"`cai [a-z]+[^`]*` or (?=(?:the cell|notebook )\b)"), ""),
    (re.compile(r",? (?:with|in) the same --workspace"), ""),
    (re.compile(r"(another|a new) --workspace"), r"\1 run name"),
    (re.compile(r"without --strict \(curate\.strict=false\)"), "with curate.strict=false"),
    (re.compile(r"--adapter none\b"), "models.adapter=null"),
    (re.compile(r"--fresh\b"), "fresh=True"),
    (re.compile(r" \(python benchmarks/[^)]*\)"), ""),
    (re.compile(r", or --limit \d+"), ""),
    (re.compile(r"(?<![\w-])--set (?=[a-z_]+\.)"), ""),
)


def in_notebook_words(text: str) -> str:
    """The text with the place in the notebooks for each command, and the argument or setting for each flag."""
    for pattern, words in (*_REMEDIES, *_IN_WORDS[:1]):
        text = pattern.sub(words, text)
    text = _COMMAND.sub(_place, text)
    for pattern, words in _IN_WORDS[1:]:
        text = pattern.sub(words, text)
    return text


def _place(found: re.Match[str]) -> str:
    place = _PLACES.get(found["name"])
    if place is None:
        return found[0]
    return f"{place} with fresh=True" if "--fresh" in found["rest"] else place
