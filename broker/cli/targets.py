"""What `broker run` runs: modules, classes in modules, files, folders.

A file is imported under the name by which other code finds it. A file without such a name is imported into a package
made for its folder, so that relative imports work with and without `__init__.py`.
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
from types import ModuleType

from broker.errors import ServiceSchemaError
from broker.services.service import Service

_TESTS = re.compile(r"test_.*|conftest")
"""Stems of files that may be beside services, and that import what only a test run has."""

_NOT_OF_THE_USER = (__file__, importlib.__file__, "<frozen importlib")
"""The beginnings of the names of files in a traceback."""


def load_services(targets: list[str]) -> list[Service]:
    """The services of `package.module`, `package.module:Class`, `file.py`, `file.py:Class`, or of the files in a folder
    and its subfolders. Classes are made without arguments.

    Raises ServiceSchemaError for a target that cannot be loaded or has no service; its cause is what the code of the
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
    if path.suffix == ".py":
        module = _load_file(path, path.parent)
    else:
        with _running(f"The module {place} cannot be imported"):
            module = importlib.import_module(place)
    if class_name:
        kind = getattr(module, class_name, None)
        if not (inspect.isclass(kind) and issubclass(kind, Service)):
            raise ServiceSchemaError(f"{class_name} in {place} is not a service class.")
        return [_made(kind)]
    services = _services_of(module)
    if not services:
        raise ServiceSchemaError(f"There is no service class with a name in {target}.")
    return services


def _files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder, then those of its subfolders, except hidden and private ones and virtual environments."""
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry)):
        if entry.suffix == ".py" and not _TESTS.fullmatch(entry.stem):
            yield entry
        elif entry.is_dir() and entry.name[0] not in "._" and not (entry / "pyvenv.cfg").exists():
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
        base = top.parent if "." not in str(path.parent.relative_to(top.parent)) else path.parent
        package = ".".join([_package(base), *path.parent.relative_to(base).parts])
        if path.stem == "__init__":
            return importlib.import_module(package)
        if "." not in path.stem:
            return importlib.import_module(f"{package}.{path.stem}")
        importlib.import_module(package)
        return _load_by_path(path, f"{package}.{path.stem.replace('.', '_')}")


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
    """The name by which an import finds this file; None when there is none, or when it finds another file."""
    is_package = (top / "__init__.py").exists()
    base = top if top == Path.cwd() and not is_package else top.parent
    parts = path.relative_to(base).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if "." in "".join(parts) or (base != Path.cwd() and not is_package):
        return None
    _make_importable(base)
    found = importlib.util.find_spec(parts[0])
    inside = found is not None and str(base / parts[0]) in (found.submodule_search_locations or ())
    return name if inside or (found is not None and found.origin == str(path)) else None


def _package(folder: Path) -> str:
    """The name of a package made for a folder."""
    name = f"broker_target_{zlib.crc32(bytes(folder)):08x}"
    sys.modules.setdefault(name, ModuleType(name)).__path__ = [str(folder)]
    return name


def _load_by_path(path: Path, name: str) -> ModuleType:
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None
        assert specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _make_importable(folder: Path, *, first: bool = False) -> None:
    """The folder of a file comes last, as its files may have the names of other modules."""
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


@contextmanager
def _running(failure: str) -> Iterator[None]:
    """Whatever a user's code raises is a failure of the target, and its end of the process too. The traceback of the
    cause begins in that code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        words = "it ended the process" if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_NOT_OF_THE_USER):
            frames = frames.tb_next
        raise ServiceSchemaError(f"{failure}: {words}") from error.with_traceback(frames)
