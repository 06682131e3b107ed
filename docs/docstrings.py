"""Docstrings as Markdown: the aligned lists of arguments, `x: (N, C, H, W)`, become lists of a page.

mkdocs.yml names this file; the parser of docstrings calls the extension for each object it reads.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*):\s+(\S.*)")
_CASE = re.compile(r'("\w+"):?\s+(\S.*)|(a \w+)\s{2,}(\S.*)')  # one of an argument's values, and what it means
_PARAGRAPHS = ("Returns ", "Raises ")


class ArgumentLists(griffe.Extension):
    """Rewrites every docstring by `markdown`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """The docstring with its aligned lists as Markdown lists.

    A line `name: text` at the margin, first of a paragraph or after another such, is an item; the indented lines below it
    belong to it. Where such a line starts with a quoted value it is an item of a list within the item. What is returned
    and what is raised is a paragraph. Indented blocks that follow a blank line stay: they are code.
    """
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        argument = _ARGUMENT.fullmatch(line) if in_list or (lines and not lines[-1]) else None
        if argument:
            lines.append(f"- `{argument[1]}`: {argument[2]}")
            in_list = True
        elif in_list and line.startswith(" ") and line.strip():
            case = _CASE.fullmatch(line.strip())
            if case:
                if not lines[-1].startswith("    - "):
                    lines.append("")
                lines.append(f"    - `{case[1] or case[3]}`: {case[2] or case[4]}")
            else:
                lines[-1] += " " + line.strip()
        else:
            if line.strip() and lines and (in_list or (lines[-1] and line.startswith(_PARAGRAPHS))):
                lines.append("")
            in_list = False
            lines.append(line)
    return "\n".join(lines)
