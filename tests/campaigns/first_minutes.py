"""A newcomer's first ten minutes: types the commands of ``notebooks/first_minutes.md`` and writes the answers there.

``uv run python tests/campaigns/first_minutes.py [--page FILE] [--keep FOLDER] [--timeout S]``

The page is its own script. A block after a file's name in backquotes is that file; in a ``console`` block, each line
that begins with ``$`` is a command, and what comes below it is replaced by what came back. The sections share one
environment, which is empty at first, and a section that begins with a file has a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "notebooks" / "first_minutes.md"
HEAD, TAIL, WIDEST = 5, 34, 200
"""Lines of an answer that are kept at its begin and its end; characters of a line."""

BLOCK = re.compile(r"(?:^`(?P<file>[\w.]+)`\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (.*?)(?: {2}# [\d.]+ s(?:, exit \d+)?)?$", re.M)
MADE = re.compile(r"^(?:MADE|Made with .*?\.)$", re.M | re.S)
ADDRESS = re.compile(r"https?://[^\s)]+")
ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@dataclass
class Newcomer:
    """Somebody at a terminal.

    Attributes:
        home: a folder for the environment and the projects.
        wheel: the package.
        timeout: seconds that a command may take.
        cache: where uv has what it fetched before.
        folder: where the next command runs.
    """

    home: Path
    wheel: Path
    timeout: float
    cache: str
    folder: Path

    def type(self, command: str) -> str:
        """Run a command; give it with its seconds and below it what came back."""
        start = time.monotonic()
        run = subprocess.run(
            ["bash", "-c", self._installs(command)],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=self.timeout,
            check=False,
        )
        seconds = time.monotonic() - start
        code = f", exit {run.returncode}" if run.returncode else ""
        print(f"{seconds:7.1f} s  {command[:100]}{code}", file=sys.stderr)
        return "\n".join([f"$ {command}  # {seconds:.3g} s{code}", *shortened(neutral(run.stdout, self.home))])

    def _installs(self, command: str) -> str:
        wanted = re.fullmatch(r'pip install "?lightning-taylor(\[\w+\])?"?', command)
        what = f"lightning-taylor{(wanted and wanted[1]) or ''} @ {self.wheel.as_uri()}"
        install = f"uv pip install -q '{what}'"
        return install if wanted else command

    def _environment(self) -> Mapping[str, str]:
        """Nothing of whoever runs this, but where packages come from."""
        ours = {
            name: value for name, value in os.environ.items() if re.match(r"UV_|PIP_|SSL_|HTTPS?_PROXY$", name, re.I)
        }
        place = self.home / "environment"
        return {
            **ours,
            "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(place),
            "HOME": str(self.home),
            "UV_CACHE_DIR": self.cache,
            "COLUMNS": "80",
            "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
            "GIT_PYTHON_REFRESH": "quiet",
        }


def neutral(text: str, home: Path) -> list[str]:
    """The lines of an answer as a reader's own machine would have them, without colours, redrawn bars and addresses."""
    text = ESCAPES.sub("", text).replace(str(home), "~")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    lines = [ADDRESS.sub("[...]", line) for line in lines]
    lines = [line if len(line) <= WIDEST else f"{line[:WIDEST]} [...]" for line in lines]
    return [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line or after]


def shortened(lines: list[str]) -> list[str]:
    """The begin and the end of a long answer, and how much is left out between."""
    lines = lines[1:] if lines and not lines[0] else lines
    between = len(lines) - HEAD - TAIL
    return lines if between < 2 else [*lines[:HEAD], f"[... {between} lines left out]", *lines[-TAIL:]]


def commands_of(block: str) -> list[str]:
    """The commands of a ``console`` block, without what came back.

    Example:
        >>> commands_of("$ python a.py  # 1.5 s, exit 2\\nFile not found\\n$ ls\\n")
        ['python a.py', 'ls']
    """
    return COMMAND.findall(block)


def typed_again(page: str, newcomer: Newcomer, save: Callable[[str], object] = len) -> str:
    """Work through a page, and give it with the answers of today; save it after each block, as far as it goes."""
    done, position = "", 0
    for block in BLOCK.finditer(page):
        between = page[position : block.start()]
        if block["file"] and "\n## " in between:  # another project
            newcomer.folder = newcomer.folder.with_name(f"{newcomer.folder.name}_next")
            newcomer.folder.mkdir()
        done += between + answered(block, newcomer)
        position = block.end()
        save(done + page[position:])
    return done + page[position:]


def answered(block: re.Match[str], newcomer: Newcomer) -> str:
    """Write the file that a block is, or type its commands; give the block as it is afterwards."""
    if block["file"]:
        (newcomer.folder / block["file"]).write_text(block["text"], encoding="utf-8")
    if block["language"] != "console":
        return block[0]
    return "\n".join(["```console", *map(newcomer.type, commands_of(block["text"])), "```"])


def made_with(newcomer: Newcomer) -> str:
    """Say with which versions, and on how many cores."""
    say = (
        "import platform; from importlib.metadata import version; "
        "print(', '.join([f'Python {platform.python_version()}'] "
        "+ [f'{n} {version(n)}' for n in ('torch', 'lightning', 'jsonargparse', 'onnxruntime')]))"
    )
    python = newcomer.home / "environment" / "bin" / "python"
    versions = subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.strip()
    load = os.getloadavg()[0]
    return f"Made with {versions}, on {os.cpu_count()} cores with {load:.1f} programs at a time."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--keep", type=Path, help="a new folder for all that is made, to look at")
    parser.add_argument("--timeout", type=float, default=900)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (asked.keep or Path(temporary)).resolve()
        (home / "project").mkdir(parents=True)
        for command in (
            ["uv", "build", "-q", "--wheel", "-o", home / "dist", ROOT],
            ["uv", "venv", "-q", home / "environment"],
        ):
            subprocess.run(command, check=True)
        (wheel,) = (home / "dist").glob("*.whl")
        cache = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
        newcomer = Newcomer(home, wheel, asked.timeout, cache, home / "project")
        page = MADE.sub("MADE", asked.page.read_text(encoding="utf-8"), count=1)
        page = typed_again(page, newcomer, asked.page.write_text)
        asked.page.write_text(page.replace("MADE", made_with(newcomer), 1), encoding="utf-8")


if __name__ == "__main__":
    main()
