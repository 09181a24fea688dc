"""A page in a frame of its own, with the colours of the notebook around it."""

from __future__ import annotations

from pathlib import Path

from cai_helpers.notebook.markup import Html
from cai_helpers.notebook.words import in_notebook_words

# A page follows the system's scheme. In a frame it should follow the notebook, whose theme it cannot see: there it is always
# light, and the notebook's dark themes (Colab, JupyterLab, VS Code) invert the whole frame, hues kept.
_FOLLOWS_SYSTEM, _NEVER = "@media (prefers-color-scheme: dark)", "@media not all"
_DARK_THEMES = "html[theme=dark] .cai-page, body[data-jp-theme-light=false] .cai-page, body.vscode-dark .cai-page"


def frame_html(page: Path, height: int) -> Html:
    """The page in `height` pixels, its commands in the words of a notebook."""
    text = in_notebook_words(page.read_text(encoding="utf-8")).replace(_FOLLOWS_SYSTEM, _NEVER)
    return Html(
        "<style>{themes} {{ filter: invert(.92) hue-rotate(180deg); }}</style><p>{page}, which opens in any browser</p>"
        '<iframe class="cai-page" sandbox srcdoc="{text}" style="width:100%;height:{height}px;background:white;'
        'border:1px solid rgba(127,127,127,.5);border-radius:4px"></iframe>'
    ).format(themes=_DARK_THEMES, page=page, text=text, height=height)
