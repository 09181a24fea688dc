from __future__ import annotations

from pathlib import Path

DOWNLOADED: list[str] = []
UPLOADS: dict[str, bytes] = {}


def download(filename):
    if not Path(filename).exists():
        raise FileNotFoundError(f"Cannot find file: {filename}")
    DOWNLOADED.append(str(filename))


def upload(target_dir=""):
    for name, content in UPLOADS.items():
        (Path(target_dir or ".") / name).write_bytes(content)
    return dict(UPLOADS)


def view(filepath):
    pass
