"""What `broker run` runs: modules, classes in modules, folders.

A file is imported under the name that other code has for it, where that name leads to it. Else it gets one of its own,
in a package made for its folder, so that relative imports work with and without `__init__.py`.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType

from broker.errors import ServiceSchemaError
from broker.services.service import Service

_TESTS = re.compile(r"test_.*|conftest")
"""The stems of files that may be beside services, and import what only a test run has."""


def load_services(targets: list[str]) -> list[Service]:
    """The services of `package.module`, `package.module:Class`, `file.py`, `file.py:Class`, or a folder of such files
    and of folders with such files. Classes are made without arguments.

    Raises ServiceSchemaError for a target that cannot be loaded or holds no service; its cause is what the code of the
    target raised.
    """
    _make_importable(Path.cwd(), first=True)
    services = [service for target in targets for service in _load(target)]
    if not services:
        raise ServiceSchemaError(f"There is no service in {', '.join(targets)}.")
    return services


def _load(target: str) -> list[Service]:
    place, _, class_name = target.partition(":")
    path = Path(place)
    if path.is_dir():
        files = list(_files_below(path))
        for file in files:
            _make_importable(file.parent.resolve())
        return [service for file in files for service in _services_of(_load_file(file, path))]
    if place.endswith("/"):
        raise ServiceSchemaError(f"The folder {place} cannot be loaded: there is no such folder.")
    module = _load_file(path, path.parent) if path.suffix == ".py" else _load_module(place)
    if not class_name:
        found = _services_of(module)
        if not found:
            raise ServiceSchemaError(f"There is no service class in {target}.")
        return found
    kind = getattr(module, class_name, None)
    if not (inspect.isclass(kind) and issubclass(kind, Service)):
        raise ServiceSchemaError(f"{class_name} in {place} is not a service class.")
    return [_made(kind)]


def _files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder, then those of its folders: not of hidden and private ones, nor of virtual environments."""
    entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.suffix == ".py" and not _TESTS.fullmatch(entry.stem):
            yield entry
    for entry in entries:
        if entry.is_dir() and entry.name[0] not in "._" and not (entry / "pyvenv.cfg").exists():
            yield from _files_below(entry)


def _services_of(module: ModuleType) -> list[Service]:
    """One instance of every service class that the module itself defines."""
    return [
        _made(kind)
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, Service)
        and kind.__module__ == module.__name__
        and isinstance(getattr(kind, "name", None), str)
    ]


def _made(kind: type[Service]) -> Service:
    with _running(f"The service class {kind.__qualname__} cannot be made without arguments"):
        return kind()


def _load_module(name: str) -> ModuleType:
    with _running(f"The module {name} cannot be imported"):
        return importlib.import_module(name)


def _load_file(path: Path, folder: Path) -> ModuleType:
    """A file in a folder that was named, or below it."""
    if not path.exists():
        raise ServiceSchemaError(f"The file {path} cannot be loaded: there is no such file.")
    path, top = path.resolve(), _top(folder.resolve())
    _make_importable(path.parent)
    with _running(f"The file {path} cannot be loaded"):
        name = _importable_name(path, top)
        if name is not None:
            return importlib.import_module(name)
        *folders, stem = path.relative_to(top).with_suffix("").parts
        if "." in "".join(folders):  # the name of a package has no dot
            folders, top = [], path.parent
        package = ".".join([_package(top), *folders])
        if stem == "__init__":
            return importlib.import_module(package)
        if "." not in stem:
            return importlib.import_module(f"{package}.{stem}")
        importlib.import_module(package)
        return _module(path, f"{package}.{stem.replace('.', '_')}")


def _top(folder: Path) -> Path:
    """The folder that relative imports may lead up to: the outermost package, or the folder below the current one."""
    if (folder / "__init__.py").exists():
        while (folder.parent / "__init__.py").exists():
            folder = folder.parent
        return folder
    while Path.cwd() in folder.parent.parents:
        folder = folder.parent
    return folder


def _importable_name(path: Path, top: Path) -> str | None:
    """The name by which an `import` finds this file; None when there is none, or when it finds another file."""
    is_package = (top / "__init__.py").exists()
    base = top if top == Path.cwd() and not is_package else top.parent
    parts = path.relative_to(base).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if "." in "".join(parts) or (base != Path.cwd() and not is_package):
        return None
    _make_importable(base)
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # an import of its package failed
            raise
        return None
    return name if found is not None and found.origin == str(path) else None


def _package(folder: Path) -> str:
    """Make a package of a folder that no import finds. Returns its name."""
    name = f"broker_target_{zlib.crc32(bytes(folder)):08x}"
    if (folder / "__init__.py").exists():
        _module(folder / "__init__.py", name)
    elif name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = [str(folder)]
    return name


def _module(path: Path, name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    folder = [str(path.parent)] if path.stem == "__init__" else None
    specification = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_importable(folder: Path, *, first: bool = False) -> None:
    """The folder of a file comes last, as its files may have the names of other modules."""
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


@contextmanager
def _running(failure: str) -> Iterator[None]:
    """Whatever a user's code raises, or that it ends the process, is a failure of the target."""
    try:
        yield
    except (Exception, SystemExit) as error:
        words = "it ended the process" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        raise ServiceSchemaError(f"{failure}: {words}") from error.with_traceback(_users_part(error.__traceback__))


def _users_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame on that is not of this module or of what imports."""
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if file not in (__file__, importlib.__file__, inspect.__file__) and not file.startswith("<frozen importlib"):
            break
        frames = frames.tb_next
    return frames
