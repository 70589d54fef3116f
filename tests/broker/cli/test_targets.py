"""Services are found in modules, classes, files and folders; what cannot be loaded says why."""

from pathlib import Path

import pytest

from broker.cli.targets import load_services
from broker.errors import ServiceSchemaError

CODE = """
from broker import Service, action

class First(Service):
    name = "first"

    @action
    async def hello(self, ctx): ...

class Second(First):
    name = "second"

class Nameless(Service):
    pass

class NoService:
    name = "none"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with services in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "services_of_a_test.py").write_text(CODE)
    (tmp_path / "empty_of_a_test.py").write_text("from broker import Service\n")
    (tmp_path / "unreadable_of_a_test.py").write_text("class\n")
    (tmp_path / "broken_of_a_test.py").write_text("import no_such_module_at_all\n")
    return tmp_path


def names(*targets: str) -> list[str]:
    return [service.full_name for service in load_services(list(targets))]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("services_of_a_test", ["first", "second"]),
        ("services_of_a_test:Second", ["second"]),
        ("services_of_a_test.py", ["first", "second"]),
        ("services_of_a_test.py:First", ["first"]),
    ],
)
def test_services_of_a_target(target: str, expected: list[str]) -> None:
    assert names(target) == expected


def test_a_folder_holds_the_services_of_all_its_files(folder: Path) -> None:
    for name in ("broken", "unreadable"):
        (folder / f"{name}_of_a_test.py").unlink()
    assert names(str(folder)) == ["first", "second"]
    assert names("services_of_a_test:First", "services_of_a_test.py:Second") == ["first", "second"]


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("no_such_module_at_all", "cannot be imported"),
        ("broken_of_a_test", "cannot be imported.*no_such_module_at_all"),
        ("no_such_file.py", "cannot be loaded"),
        ("empty_of_a_test", "no service class in empty_of_a_test"),
        ("services_of_a_test:NoService", "NoService in services_of_a_test is no service class"),
        ("services_of_a_test:Missing", "Missing in services_of_a_test is no service class"),
        ("broken_of_a_test.py", "broken_of_a_test.py.*no_such_module_at_all"),
        ("unreadable_of_a_test.py", "unreadable_of_a_test.py cannot be loaded: SyntaxError"),
        ("unreadable_of_a_test", "unreadable_of_a_test cannot be imported: SyntaxError"),
    ],
)
def test_what_holds_no_service_says_so(target: str, wanted: str) -> None:
    with pytest.raises(ServiceSchemaError, match=wanted):
        load_services([target])


def test_an_empty_folder_says_so(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ServiceSchemaError, match="There is no service in"):
        load_services([str(folder / "empty")])
