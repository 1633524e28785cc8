"""The package as a site installs it: a wheel in an environment of its own, with the locked dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")


class InstalledWheel:
    """An environment in `folder` into which the wheel of this checkout is installed.

    Its dependencies are the locked ones, whose installation takes a minute, or those that are in the folder `packages`
    when it is used.
    """

    def __init__(self, folder: Path, packages: Path | None = None) -> None:
        self.folder = folder
        source = folder / "source"
        # setuptools writes beside the source, which must stay as it is.
        shutil.copytree(REPOSITORY / "island", source / "island", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, source)
        build = ("build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable)
        self._uv(*build, "--out-dir", str(folder), str(source))
        [self.wheel] = folder.glob("*.whl")
        shutil.rmtree(source)
        # Relocatable, because a test may mount it at another place.
        self._uv("venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder / "env"))
        if packages is None:
            lock = str(REPOSITORY / "requirements.lock")
            install = ("pip", "install", "--quiet", "--python", self.python)
            self._uv(*install, "--require-hashes", "--requirement", lock)
        else:
            [site] = (folder / "env" / "lib").glob("python3*/site-packages")
            (site / "dependencies.pth").write_text(f"{packages}\n", "utf-8")
        self._uv("pip", "install", "--quiet", "--python", self.python, "--no-deps", str(self.wheel))

    @property
    def python(self) -> str:
        """The interpreter of the environment."""
        return str(self.folder / "env" / "bin" / "python")

    def names(self) -> list[str]:
        """The files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()

    def island(self, *arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command `island` of the environment, outside the checkout."""
        return subprocess.run(
            [str(self.folder / "env" / "bin" / "island"), *arguments],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _uv(self, *arguments: str) -> None:
        command = [str(UV), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{' '.join(arguments[:3])}: {done.stderr[-3000:]}"
