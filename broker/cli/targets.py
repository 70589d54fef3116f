"""What `broker run` is told to run: modules, classes in modules, folders."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from broker.errors import ServiceSchemaError
from broker.service import Service


def load_services(targets: list[str]) -> list[Service]:
    """The services of `package.module`, `package.module:Class`, `file.py`, `file.py:Class` or a folder of such files.

    Files may import others of their folder, and of their package when the folder is one. Classes are made without
    arguments.

    Raises ServiceSchemaError for a target that cannot be loaded or holds no service.
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
        return [service for file in sorted(path.glob("*.py")) for service in _services_of(_load_file(file))]
    module = _load_file(path) if path.suffix == ".py" else _load_module(place)
    if not class_name:
        found = _services_of(module)
        if not found:
            raise ServiceSchemaError(f"There is no service class in {target}.")
        return found
    kind = getattr(module, class_name, None)
    if not (inspect.isclass(kind) and issubclass(kind, Service)):
        raise ServiceSchemaError(f"{class_name} in {place} is no service class.")
    return [_made(kind)]


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
    try:
        return kind()
    except Exception as error:  # it runs somebody's code
        raise ServiceSchemaError(
            f"The service class {kind.__qualname__} cannot be made without arguments: {_words(error)}"
        ) from error


def _make_importable(folder: Path, *, first: bool = False) -> None:
    """The folder of a file comes last, as its files may have the names of modules that others import."""
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # it runs somebody's code
        raise ServiceSchemaError(f"The module {name} cannot be imported: {_words(error)}") from error


def _load_file(path: Path) -> ModuleType:
    _make_importable(path.parent.resolve())
    dotted = _name_in_package(path)
    if dotted is not None:  # its relative imports need the package
        return _load_module(dotted)
    name = f"broker_target_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None or not path.exists():
        raise ServiceSchemaError(f"The file {path} cannot be loaded.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # it runs somebody's code
        raise ServiceSchemaError(f"The file {path} cannot be loaded: {_words(error)}") from error
    return module


def _name_in_package(path: Path) -> str | None:
    """The dotted name under which a file of a package can be imported. None for a file of no package, and for one whose
    package another of that name hides."""
    folder = path.parent.resolve()
    parts = [] if path.stem == "__init__" else [path.stem]
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    if folder == path.parent.resolve() or not all(part.isidentifier() for part in parts):
        return None
    _make_importable(folder)
    name = ".".join(parts)
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # it runs somebody's code
        raise ServiceSchemaError(f"The package of {path} cannot be imported: {_words(error)}") from error
    return name if found is not None and found.origin == str(path.resolve()) else None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
