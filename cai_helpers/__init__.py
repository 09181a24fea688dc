"""Constitutional AI's Stage 3 on hardware anyone has. Importing this does nothing; stages load what they need.

    from cai_helpers import Workspace, load_settings, run_stage3

    report = run_stage3(load_settings("smoke"), Workspace("artifacts/mine"))

What is named in `__all__` is the package's public surface; it is loaded when it is first asked for. Each stage is a
function of settings and a workspace, and returns a report.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_HOME = {  # public name → the module it lives in
    "CaiError": "errors",
    "Settings": "settings",
    "Workspace": "workspace",
    "analyze_pairs": "stages.analyze",
    "calibrate_scorer": "stages.calibrate",
    "change_settings": "settings",
    "check_path": "stages.preflight",
    "compare_constitutions": "stages.principles",
    "compare_principles": "stages.principles",
    "compare_protocols": "stages.bakeoff",
    "compare_scorers": "stages.compare_scorers",
    "curate_pairs": "stages.curate",
    "download_models": "stages.download",
    "evaluate_models": "stages.evaluate",
    "export_artifacts": "stages.export",
    "generate_pairs": "stages.generate",
    "import_archive": "stages.take_in",
    "load_settings": "settings",
    "plan_run": "planning.plan",
    "push_archive": "stages.push",
    "run_stage3": "pipeline",
    "score_pairs": "stages.score",
    "train_policy": "stages.train",
    "verify_archive": "stages.verify",
    "write_run_report": "pages.run_page",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> _Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next time it is there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
