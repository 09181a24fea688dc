from __future__ import annotations

from pathlib import Path

from google.colab import errors

CLOUD: Path | None = None  # the folder that holds what is on Drive
DENIED = False
MOUNTED: list[Path] = []


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if DENIED:
        raise errors.MessageError("Error: credential propagation was unsuccessful")
    if CLOUD is None:
        raise ValueError("mount failed")
    point = Path(mountpoint)
    if (point / "MyDrive").exists():
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, call "
            f'drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    point.mkdir(parents=True, exist_ok=True)
    (point / "MyDrive").symlink_to(CLOUD, target_is_directory=True)
    MOUNTED.append(point)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    while MOUNTED:
        (MOUNTED.pop() / "MyDrive").unlink(missing_ok=True)
