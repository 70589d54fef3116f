"""Every section that a comment cites is a heading of docs/protocol.md."""

import re

from tests.support.processes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)*)\.? ", re.MULTILINE)
CITATION = re.compile(r"§(\d+(?:\.\d+)*)")


def test_every_cited_section_of_the_protocol_is_a_heading_of_its_page() -> None:
    headings = set(HEADING.findall(PAGE))
    missing = {
        f"{path.relative_to(REPOSITORY)}: §{section}"
        for room in ("broker", "services", "tests", "docs")
        for path in sorted((REPOSITORY / room).rglob("*"))
        if path.suffix in (".py", ".md") and "node_modules" not in path.parts
        for section in CITATION.findall(path.read_text(encoding="utf-8"))
        if section not in headings
    }
    assert not missing
