"""Finds sentences that are too long, and insider words, in docstrings, comments and pages.

Run by ``tox -e lint``. The limit and the phrases are those of CONTRIBUTING, "Plain words".
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 25
"""Words in a sentence."""

PHRASES = (
    r"\bwhoever\b",
    r"\bwhatever\b",
    r"\bwhat is (?:not|put|passed|given|sent|there)\b",
    r"\bof (?:yours|ours|theirs|mine|a person's)\b",
    r"\bas ever\b",
    r"\bgets? its say\b",
    r"\bcolou?rs?\b",
    r"\btakers?\b",
    r"^Ours\.$",
)
"""Clauses that have to be read twice, and words that only we understand."""

_CODE = re.compile(r"```.*?```|\$\$.*?\$\$", re.DOTALL)
_LITERAL = re.compile(r"::\n(?:\n|[ \t]+.*(?:\n|\Z))+|^[ \t]*(?:\$|>>>|\.\.\.) .*$", re.MULTILINE)
"""A literal block, such as a tree of classes, and lines that are typed into a terminal."""
_INLINE = re.compile(r"``[^`]+``|`[^`]+`|\[([^\]]*)\]\([^)]*\)|<[^>]+>")
_ROW = re.compile(r"^\s*\|.*\|\s*$", re.MULTILINE)
_FIELD = re.compile(r"^\s*:(?:param \w+|returns?|raises [\w.]+):", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])[\"'”)*_]*\s+|\n\s*\n|\n\s*[-*|>#]\s|\n\s*\d+\. ")


def sentences(text: str) -> Iterator[str]:
    """Each sentence of a docstring or page, code and links as one word each, and each cell of a table by itself."""
    text = _LITERAL.sub("\n\n", _CODE.sub("\n\n", text))
    text = _INLINE.sub(lambda match: match[1] or "CODE", text)
    text = _FIELD.sub("\n\n", text)
    text = _ROW.sub(lambda row: row[0].replace("|", "\n\n"), text)
    for part in _END.split(text):
        yield " ".join(part.split())


def faults(text: str) -> Iterator[str]:
    """What is wrong with a docstring, comment or page."""
    for sentence in sentences(text):
        count = len(re.findall(r"[\w'-]+", sentence))
        if count > LONGEST:
            yield f"{count} words: {sentence}"
        yield from phrases(sentence)


def phrases(text: str) -> Iterator[str]:
    """Which of the phrases *text* has."""
    for phrase in PHRASES:
        if found := re.search(phrase, text, re.IGNORECASE):
            yield f"{found[0]!r}: {text}"


def of_errors(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each literal that may be in an error, warning or log record."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def of_python(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each docstring, and of each block of comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value
    block: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            first = first if block else token.start[0]
            text = token.string.lstrip("# ")
            if not text.startswith(("noqa", "type:", "pyright:", "--")):
                block.append(text.partition("  # ")[0])
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            if block:
                yield first, "\n".join(block)
            block = []


def modules(*folders: str) -> Iterator[Path]:
    """The Python files of *folders*."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not {".venv", "build", "dist"} & {*path.parts}:
                yield path


def findings() -> Iterator[tuple[Path, int, str]]:
    """What is wrong, in every text that a reader sees."""
    for path in modules("procrastinate_extconn", "plugins", "tests", "docs/examples"):
        for line, text in of_python(path):
            yield from ((path, line, fault) for fault in faults(text))
    for path in modules("procrastinate_extconn", "plugins"):
        for line, text in of_errors(path):
            yield from ((path, line, fault) for fault in phrases(text))
    pages = [*ROOT.glob("*.md"), *(ROOT / "plugins").glob("*/*.md"), *(ROOT / "docs").rglob("*.md")]
    for path in sorted(pages):
        if "_build" not in path.parts:
            text = path.read_text(encoding="utf-8")
            yield from ((path, 1, fault) for fault in faults(text))


def main() -> int:
    """Print each finding, and return whether there is one."""
    found = sorted(set(findings()))
    for path, line, fault in found:
        print(f"{path.relative_to(ROOT)}:{line}: {fault}")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
