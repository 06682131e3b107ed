"""The Python snippets of a page, by the heading they stand under."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def sections(page: str) -> dict[str, list[str]]:
    """{heading: [code, ...]} of docs/`page`; the first heading is the title, whose snippets come before all others."""
    text = (DOCS / page).read_text()
    return {
        title: re.findall(r"```python\n(.*?)```", body, re.DOTALL)
        for title, body in re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    }
