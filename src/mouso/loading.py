"""Finds and imports the app that a person names as ``module:attribute``.

Used by the command line and by the children of a worker, so neither click nor rich may be imported here. Whatever
goes wrong while the app's module is imported becomes a ``ConfigError`` of one line that names file and line; the
exception itself stays in ``__cause__``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from mouso.app import Mouso
from mouso.config import closest, one_line, project_file, project_settings
from mouso.errors import BrokerError, ConfigError, MousoError

PREFERRED = ("app", "mouso", "celery")
"""Attributes to look at first when only a module is named."""


def load_app(path: str | None, *, folder: Path | None = None) -> Mouso:
    """Imports an app. The folder stays first on ``sys.path``, for imports that the app makes later.

    Args:
        path: ``module:attribute``, or ``module`` alone when it holds one app; None for ``$MOUSO_APP``, else
            ``[tool.mouso] app`` of the nearest pyproject.toml.
        folder: Where to look for modules first; default: the current directory.

    Raises:
        ConfigError: The path, the module or the attribute cannot be used.
        BrokerError: The module needs the broker when it is imported.
    """
    path, folder = locate_app(path, folder)
    module_name, _, attribute = path.partition(":")
    if folder is not None and (not sys.path or sys.path[0] != str(folder)):
        sys.path.insert(0, str(folder))
    module = _import(module_name, attribute, folder)
    _check_shadowed(module, folder)
    return _named_app(module, attribute) if attribute else _only_app(module)


def locate_app(path: str | None, folder: Path | None = None) -> tuple[str, Path | None]:
    """Finds out which app is meant, without importing it.

    Returns:
        The checked path, and the folder to put on ``sys.path``: the one given, that of the pyproject.toml that named
        the app, or the current directory; None if that was deleted.

    Raises:
        ConfigError: No app is named, or the path is malformed.
    """
    here = _here() if folder is None else folder
    source = ""
    if not path and (path := os.environ.get("MOUSO_APP")):
        source = "$MOUSO_APP: "
    if not path:
        path = project_settings(here).app
        project = project_file(here)
        if path and project is not None:
            source, here = f"{project}: tool.mouso.app: ", project.parent
    if not path:
        raise ConfigError(
            'no app is named; write module:attribute after the command, set $MOUSO_APP, or put app = "module:attribute"'
            " under [tool.mouso] into pyproject.toml"
        )
    _check(path, source)
    return path, here


def looks_like_app(text: str, *, attribute: bool = True) -> bool:
    """Whether a text has the form ``module:attribute`` (or ``module``, with ``attribute=False``)."""
    module, colon, name = text.partition(":")
    if attribute != bool(colon):
        return False
    parts = [*module.split("."), *(name.split(".") if colon else ())]
    return all(part.isidentifier() for part in parts)


def module_exists(path: str, folder: Path | None = None) -> bool:
    """Whether the first part of ``module.sub:attribute`` can be found, in the folder or installed; imports nothing."""
    name = path.partition(":")[0].partition(".")[0]
    here = _here() if folder is None else folder
    try:
        if PathFinder.find_spec(name, [*([str(here)] if here else []), *sys.path]) is not None:
            return True
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, OSError):
        return False


def _here() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


def _check(path: str, source: str) -> None:
    if looks_like_app(path) or looks_like_app(path, attribute=False):
        return
    if any(0xD800 <= ord(c) <= 0xDFFF for c in path):
        raise ConfigError(f"{source}{path!r:.80} is not valid UTF-8")
    hint = "write module:attribute, such as shop:app"
    match = re.fullmatch(r"(?:\./)?([\w./-]+?)(?:\.py)?(?::([\w.]*))?", path)
    if match:
        guess = f"{match[1].strip('/').replace('/', '.')}:{match[2] or 'app'}"
        if looks_like_app(guess):
            hint = f"did you mean {guess!r}?"
    raise ConfigError(f"{source}{path!r:.80} is no app path; {hint}")


# -- importing -----------------------------------------------------------------------------------------------------


def _import(name: str, attribute: str, folder: Path | None) -> ModuleType:
    importlib.invalidate_caches()  # the file may be younger than the directory listing that Python keeps
    try:
        return importlib.import_module(name)
    except BrokerError:
        raise
    except ModuleNotFoundError as error:
        if _own_frames(error):
            raise _failed(name, error, folder) from error
        raise _missing_module(name, attribute, folder) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise  # a person's; elsewhere it is the module's own
        raise _failed(name, error, folder) from error


def _failed(name: str, error: BaseException, folder: Path | None) -> ConfigError:
    """The error for a module that was found but could not be imported."""
    where = _place(name, error, folder)
    if isinstance(error, SystemExit):
        return ConfigError(
            f"cannot import {name!r}: {where} calls sys.exit({_exit_code(error)}) when it is imported; "
            "put that under: if __name__ == '__main__'"
        )
    text = error.msg if isinstance(error, SyntaxError) else one_line(error)
    if unfinished := _unfinished(error):
        module, file = unfinished
        if module in sys.stdlib_module_names and folder is not None and _is_own(Path(file), folder):
            return ConfigError(
                f"cannot import {name!r}: {where}: {file} has the name of Python's own module {module!r}; "
                "rename the file"
            )
        return ConfigError(
            f"cannot import {name!r}: {where}: circular import: {text}; make the app in a module that imports none of "
            "those that use it"
        )
    if isinstance(error, ModuleNotFoundError):
        text += "; correct the name, or install it into this environment"
    kind = "" if isinstance(error, MousoError) else f"{type(error).__name__}: "
    return ConfigError(f"cannot import {name!r}: {where}: {kind}{text}")


def _exit_code(error: SystemExit) -> str:
    return "" if error.code is None else f"{error.code!r:.40}"


def _unfinished(error: BaseException) -> tuple[str, str] | None:
    """Name and file of the module that lacks a name because its body still ran; None for any other error.

    Python's words do not tell: since 3.13 a module of the folder that Python was started in is taken for a badly named
    file, and the circle is not mentioned.
    """
    match error:
        case ImportError(name=str(asked), path=str()):  # who raises one by hand sets no path
            pass
        case AttributeError(obj=ModuleType(__name__=str(asked))):
            pass
        case _:
            return None
    for frame, _line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == asked:
            return asked, frame.f_code.co_filename
    return None


def _own_frames(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each frame that is neither this module's nor the import machinery's, outermost first."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    machinery = (__file__, importlib.__file__)
    return [(file, line) for file, line in frames if file not in machinery and not file.startswith("<frozen ")]


def _place(name: str, error: BaseException, folder: Path | None) -> str:
    """Where it happened: the innermost line of the app's own code, such as ``shop.py, line 3``.

    That is code below the folder, else of the module's own package, else whatever is neither Mouso's nor Python's.
    """
    frames = _own_frames(error)
    if isinstance(error, SyntaxError) and error.filename and os.path.isabs(error.filename):
        frames.append((error.filename, error.lineno or 0))
    if not frames:
        return _origin(name)
    own = [frame for frame in frames if folder is not None and _is_own(Path(frame[0]), folder)]
    package = _package(name)
    of_package = [frame for frame in frames if any(Path(frame[0]).is_relative_to(place) for place in package)]
    foreign = [frame for frame in frames if os.path.isabs(frame[0]) and not _is_tool(Path(frame[0]))]
    file, line = (own or of_package or foreign or frames)[-1]
    shown = str(Path(file).relative_to(folder)) if own and folder is not None else file
    return f"{shown}, line {line}" if line else shown


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, OSError):
        return None


def _origin(name: str) -> str:
    """The file of a module that Python could not even read."""
    spec = _spec(name)
    return (spec and spec.origin) or "its file"


def _package(name: str) -> list[str]:
    """The folders of a module's outermost package; the file of one that is in none."""
    spec = _spec(name.partition(".")[0])
    if spec is None:
        return []
    return list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))


def _is_own(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and not _is_installed(file) and not _is_tool(file)


def _is_installed(file: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(file.parts)


def _is_tool(file: Path) -> bool:
    """Whether it is Mouso's or the standard library's, either of which may lie below the app's folder."""
    python = file.is_relative_to(Path(os.__file__).parent) and not _is_installed(file)
    return python or file.is_relative_to(Path(__file__).parent)


# -- what is not there ---------------------------------------------------------------------------------------------


def _missing_module(name: str, attribute: str, folder: Path | None) -> ConfigError:
    if folder is None or not folder.is_dir():
        return ConfigError(
            f"no module is called {name!r}; the current directory does not exist any more, go to another one"
        )
    tail = f":{attribute}" if attribute else ""
    found, place = "", folder
    for part in name.split("."):
        if not (place / part).is_dir():
            break
        found, place = f"{found}{part}.", place / part
    rest = name.removeprefix(found)
    first, _, below = rest.partition(".")
    if below and (place / f"{first}.py").is_file():
        guess = f"{found}{first}{tail}" if below == "py" else f"{found}{first}:{below}"
        return ConfigError(f"{name!r}: {found}{first} is a module, not a package; did you mean {guess!r}?")
    hint = closest(first, _importable(place), f"{found}{{}}{tail}")
    if not hint and ((folder / "src" / first).is_dir() or (folder / "src" / f"{first}.py").is_file()):
        hint = f"it lies in {folder / 'src'}; go there, or install the project (pip install -e .)"
    hint = hint or "check the name, and the directory you are in"
    return ConfigError(f"no module is called {name!r} in {folder} or among the installed ones; {hint}")


def _importable(folder: Path) -> Iterator[str]:
    """Names of the modules and packages that lie in a folder."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        name = entry.name.removesuffix(".py")
        if name.isidentifier() and (name != entry.name or _holds_python(entry)):
            yield name


def _holds_python(folder: Path) -> bool:
    try:
        return any(entry.name.endswith(".py") for entry in folder.iterdir())
    except OSError:
        return False


def _check_shadowed(module: ModuleType, folder: Path | None) -> None:
    """Refuses a module that Python itself had loaded before a file of the same name in the folder could be."""
    name = module.__name__
    if folder is None or name not in sys.stdlib_module_names or _is_own(Path(_file(module)), folder):
        return
    if (folder / f"{name}.py").is_file():
        raise ConfigError(f"{folder / name}.py has the name of Python's own module {name!r}; rename the file")


def _named_app(module: ModuleType, attribute: str) -> Mouso:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except Exception as error:
            raise _missing_attribute(module, attribute) from error
    if not isinstance(value, Mouso):
        apps = _apps(module)
        hint = f"did you mean '{module.__name__}:{next(iter(apps))}'?" if apps else "name the Mouso object"
        kind = type(value).__name__
        raise ConfigError(f"{module.__name__}:{attribute} is a {kind} ({_file(module)}), not a Mouso app; {hint}")
    return value


def _missing_attribute(module: ModuleType, attribute: str) -> ConfigError:
    apps = _apps(module)
    hint = closest(attribute, apps) or (f"its app is called {next(iter(apps))!r}" if apps else "it holds no Mouso app")
    return ConfigError(f"module {module.__name__!r} ({_file(module)}) has no attribute {attribute!r}; {hint}")


def _only_app(module: ModuleType) -> Mouso:
    apps = _apps(module)
    for name in PREFERRED:
        if name in apps:
            return apps[name]
    name = module.__name__
    match list({id(app): app for app in apps.values()}.values()):
        case [app]:
            return app
        case []:
            raise ConfigError(f"module {name!r} ({_file(module)}) holds no Mouso app; name it as module:attribute")
        case _:
            choice = ", ".join(f"{name}:{attribute}" for attribute in apps)
            raise ConfigError(f"module {name!r} holds several apps; choose one of {choice}")


def _apps(module: ModuleType) -> dict[str, Mouso]:
    apps = {name: value for name, value in vars(module).items() if isinstance(value, Mouso)}
    return {name: apps[name] for name in sorted(apps, key=lambda name: name not in PREFERRED)}


def _file(module: ModuleType) -> str:
    return vars(module).get("__file__") or "a namespace package or built-in module"
