"""Wheels of this very working tree under made-up versions, and its dependencies as a directory for PYTHONPATH, so that
installing a version needs no network."""

from __future__ import annotations

import site
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gpushare
import gpushare_agent

_SCRIPTS = """\
[console_scripts]
gpushare = gpushare.entry:command_line
gpushare-scheduler = gpushare.scheduler.main:main
gpushare-agent = gpushare_agent.main:main
gpushare-simwork = gpushare_agent.gpus.simwork:main
"""


def make_wheel(folder: Path, version: str, changes: Mapping[str, tuple[str, str]] | None = None) -> Path:
    """`changes` are (old, new) texts by the file's name in the wheel."""
    changes = {"gpushare/__init__.py": (f'"{gpushare.__version__}"', f'"{version}"'), **(changes or {})}
    info = f"gpushare_cluster-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: gpushare-cluster\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": _SCRIPTS,
    }
    for package in (gpushare, gpushare_agent):
        top = Path(package.__path__[0])
        for file in sorted(top.rglob("*.py")):
            name = f"{top.name}/{file.relative_to(top)}"
            old, new = changes.get(name, ("", ""))
            text = file.read_text()
            assert old in text, f"{name} has no {old!r}"
            files[name] = text.replace(old, new) if old else text
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    wheel = folder / f"gpushare_cluster-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def dependencies(folder: Path) -> Path:
    """A directory with what these tests' environment has installed, gpushare itself and pip left out."""
    folder.mkdir()
    for entry in Path(site.getsitepackages()[0]).iterdir():
        mine = entry.name.lower().replace("-", "_").lstrip("_")
        if not mine.startswith(("gpushare", "editable", "pip", "pycache")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder
