"""Services are found in modules, classes, files and folders; what cannot be loaded says why."""

import sys
import traceback
from collections.abc import Iterator
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
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports is forgotten after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


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
        ("no_such_folder/", "there is no such folder"),
        ("empty_of_a_test", "no service class with a name in empty_of_a_test"),
        ("services_of_a_test:NoService", "NoService in services_of_a_test is not a service class"),
        ("services_of_a_test:Missing", "Missing in services_of_a_test is not a service class"),
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


def test_files_of_a_folder_may_import_each_other_and_never_hide_a_module(folder: Path) -> None:
    services = folder / "in_a_folder"
    services.mkdir()
    (services / "words_of_a_test.py").write_text("GREETING = 'hello'\n")
    (services / "colorsys.py").write_text("GREETING = 'hello'\n")
    imports = "import colorsys, words_of_a_test\nassert colorsys.rgb_to_hls\nfrom broker import Service\n"
    code = "class One(Service):\n    name = words_of_a_test.GREETING\n"
    (services / "one.py").write_text(f"{imports}\n{code}")
    assert names(str(services)) == ["hello"]
    assert names(str(services / "one.py")) == ["hello"]


def test_files_of_a_package_may_import_relatively(folder: Path) -> None:
    package = folder / "shop_of_a_test" / "parts"
    package.mkdir(parents=True)
    for place in (package, package.parent):
        (place / "__init__.py").write_text("")
    (package.parent / "words.py").write_text("GREETING = 'hello'\n")
    code = "class One(Service):\n    name = GREETING\n"
    (package / "one.py").write_text(f"from broker import Service\nfrom ..words import GREETING\n{code}")
    assert names(str(package)) == names(str(package / "one.py")) == names("shop_of_a_test.parts.one:One") == ["hello"]


@pytest.mark.parametrize("inits", [(), ("",), ("sub",), ("", "sub")], ids=str)
@pytest.mark.parametrize("place", ["shop", "services", "elsewhere/services"])
def test_a_folder_holds_the_services_of_its_folders_and_they_import_relatively(
    folder: Path, place: str, inits: tuple[str, ...]
) -> None:
    """With and without `__init__.py`; and `services` is the name of a package that is installed beside the broker."""
    top = folder / place
    for below in ("sub", "_private", ".hidden", "sub/__pycache__", "environment"):
        (top / below).mkdir(parents=True)
    for below in inits:
        (top / below / "__init__.py").write_text("")
    service = "from broker import Service\nclass One(Service):\n    name = {}\n"
    (top / "words.py").write_text("GREETING = 'hello'\n")
    (top / "one-and.only.py").write_text("from .words import GREETING\n" + service.format("GREETING"))
    (top / "sub" / "two.py").write_text("from ..words import GREETING\n" + service.format("GREETING + ' below'"))
    (top / "sub" / "three.py").write_text("from .two import One as Two\n" + service.format("Two.name + '!'"))
    (top / "environment" / "pyvenv.cfg").write_text("")
    for unwanted in ("_private/a", ".hidden/a", "environment/a", "sub/test_two", "conftest", "sub/__pycache__/a"):
        (top / f"{unwanted}.py").write_text("import no_such_module_at_all\n")
    assert names(place) == ["hello", "hello below!", "hello below"]
    if inits != ("sub",):  # else its package is the outermost one
        assert names(f"{place}/sub/three.py:One", f"{place}/sub/two.py") == ["hello below!", "hello below"]


def test_a_package_with_the_name_of_another_runs(folder: Path) -> None:
    """`services` is the name of many a folder, and of a package that is installed beside the broker."""
    package = folder / "elsewhere" / "services"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "words_of_services.py").write_text("GREETING = 'hello'\n")
    code = "from broker import Service\nimport words_of_services\n"
    (package / "one_of_services.py").write_text(f"{code}class One(Service):\n    name = words_of_services.GREETING\n")
    assert names(str(package)) == ["hello"]


def test_a_package_that_cannot_be_imported_says_so(folder: Path) -> None:
    package = folder / "bad_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0\n")
    (package / "one.py").write_text("from broker import Service\n")
    with pytest.raises(ServiceSchemaError, match=r"cannot be (imported|loaded): ZeroDivisionError"):
        load_services([str(package)])


def test_the_cause_of_a_failure_begins_in_the_code_of_the_target(folder: Path) -> None:
    (folder / "ending_of_a_test.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "needy_of_a_test.py").write_text("import broken_of_a_test\n")
    for target, files in {
        "needy_of_a_test": ["needy_of_a_test.py", "broken_of_a_test.py"],
        "needy_of_a_test.py": ["needy_of_a_test.py", "broken_of_a_test.py"],
        "ending_of_a_test.py": ["ending_of_a_test.py"],
    }.items():
        with pytest.raises(ServiceSchemaError) as caught:
            load_services([target])
        assert caught.value.__cause__ is not None
        frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
        shown = [Path(frame.filename).name for frame in frames if "importlib" not in frame.filename]
        assert [name for name in shown if name != "rewrite.py"] == files  # pytest has an import hook of its own


@pytest.mark.parametrize("place", ["needy_of_a_test:Needy", "needy_of_a_test.py", "."])
def test_a_class_that_cannot_be_made_says_why(folder: Path, place: str) -> None:
    for file in folder.glob("*.py"):
        file.unlink()
    code = "class Needy(Service):\n    name = 'needy'\n    def __init__(self, url): ..."
    (folder / "needy_of_a_test.py").write_text(f"from broker import Service\n\n{code}\n")
    with pytest.raises(ServiceSchemaError, match=r"Needy cannot be made without arguments: TypeError.*'url'"):
        load_services([place])
