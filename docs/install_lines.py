"""Writes what README and the pages say of installing, as `known_plugins.RELEASED` says.

That is each ``pip install`` line, and each cell of a table that has a part of such a line. A release also removes the
words that only hold before it.

``python docs/install_lines.py`` after that constant has changed; with ``--check``, exits with 1 if a line is wrong.
"""

import re
import sys
from pathlib import Path

from procrastinate_extconn.known_plugins import RELEASED, install_line

ROOT = Path(__file__).parents[1]
_LINE = re.compile(
    r"(?<!bin/)pip install [^\n`|]*|(?<=\| `)(?:\.|procrastinate-extconn-)[^\n`|]*(?=` \|)"
)
_OURS = re.compile(
    r"(?<![^ '])(?:procrastinate-extconn(?:-(?P<name>[a-z0-9]+))?|\.(?:/plugins/(?P<folder>[a-z0-9]+))?)"
    r"(?:\[(?P<extras>[\w,]+)\])?(?=[ ']|$)"
)
_BEFORE_A_RELEASE = re.compile(
    r"There\sis\sno\srelease\syet:[^.]*\.\s|\sin\sa\sclone\sof\sprocrastinate-extconn(?=\.)"
)


def _target(match: re.Match[str]) -> str:
    line = install_line(match["name"] or match["folder"], match["extras"] or "")
    return line.removeprefix("pip install ").strip("'")


def written(text: str) -> str:
    """*text* with the lines as they should be."""
    text = _LINE.sub(lambda line: _OURS.sub(_target, line[0]), text)
    return _BEFORE_A_RELEASE.sub("", text) if RELEASED else text


def main() -> int:
    """Rewrite the pages, or count the wrong ones."""
    wrong = 0
    pages = [
        ROOT / "README.md",
        *(ROOT / "plugins").glob("*/README.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        if "_build" not in page.parts and written(text) != text:
            wrong += 1
            print(page.relative_to(ROOT))  # noqa: T201
            if "--check" not in sys.argv:
                page.write_text(written(text), encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()) and "--check" in sys.argv)
