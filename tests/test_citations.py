"""What comments and pages point to is there: sections of docs/protocol.md, and files."""

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


def test_every_file_that_the_page_of_the_architecture_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = {
        str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*/**/*.py") if "node_modules" not in path.parts
    }
    for name in set(re.findall(r"[\w/]+\.py\b", page)):
        assert any(file == name or file.endswith(f"/{name}") for file in files), name
    assert page.count("\n") <= 100
