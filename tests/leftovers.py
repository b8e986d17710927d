"""Files that a killed process leaves."""

from pathlib import Path

from dino_path import atomic


def left_by_a_kill(file: Path, *, host: str | None = None) -> Path:
    """The temporary file of a write of `file` that was killed on this machine, or on another one."""
    token = f"{atomic._host() if host is None else 'ffff'}0a1b2c"
    temporary = file.with_name(f".{file.name}.4711-{token}.tmp")
    temporary.write_bytes(b"half")
    atomic._swept.discard(file.parent)  # the next write is that of another process
    return temporary
