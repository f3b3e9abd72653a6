"""Finding and importing the app that a person names."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mouso import Mouso, MousoError, loading
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.loading import load_app, locate_app, looks_like_app, module_exists
from tests.unit.cli_kit import isolated

APP = "from mouso import Mouso\napp = Mouso('shop', broker='memory://loading')\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with isolated(tmp_path, monkeypatch):
        (tmp_path / "pyproject.toml").write_text("")
        yield tmp_path


def write(folder: Path, name: str, text: str = APP) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fails(path: str | None, **kwargs: Path) -> str:
    """The message, which must be one printable line."""
    with pytest.raises(ConfigError) as caught:
        load_app(path, **kwargs)
    text = str(caught.value)
    assert text.isprintable()
    return text


# -- what works ------------------------------------------------------------------------------------------------------


def test_module_and_attribute(folder: Path) -> None:
    write(folder, "shop_a.py")
    app = load_app("shop_a:app")
    assert isinstance(app, Mouso)
    assert app is load_app("shop_a:app")
    assert sys.path[0] == str(folder)


def test_dotted_module_and_dotted_attribute(folder: Path) -> None:
    write(folder, "pack_b/__init__.py", "")
    write(folder, "pack_b/tasks.py", APP + "class Holder:\n    inner = app\n")
    assert load_app("pack_b.tasks:Holder.inner").name == "shop"


@pytest.mark.parametrize("name", ["app", "mouso", "celery", "whatever"])
def test_a_module_alone_when_it_holds_one_app(folder: Path, name: str) -> None:
    write(
        folder, f"only_{name}.py", f"import mouso as m\n{name} = m.Mouso('one', broker='memory://x')\nagain = {name}\n"
    )
    assert load_app(f"only_{name}").name == "one"


def test_a_module_alone_prefers_the_usual_names(folder: Path) -> None:
    write(folder, "pair.py", "from mouso import Mouso\na, app = (Mouso(n, broker='memory://x') for n in 'ab')\n")
    assert load_app("pair").name == "b"


def test_a_folder_other_than_the_current_one(folder: Path) -> None:
    write(folder, "elsewhere/faraway.py")
    assert load_app("faraway:app", folder=folder / "elsewhere").name == "shop"


def test_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "by_env.py")
    monkeypatch.setenv("MOUSO_APP", "by_env:app")
    assert load_app(None).name == load_app("").name == "shop"


def test_named_by_the_project_file_is_found_from_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "by_project.py")
    write(folder, "pyproject.toml", '[tool.mouso]\napp = "by_project:app"\n')
    write(folder, "docs/deep/x", "")
    monkeypatch.chdir(folder / "docs" / "deep")
    assert locate_app(None) == ("by_project:app", folder)
    assert load_app(None).name == "shop"


def test_the_argument_goes_before_the_environment_and_that_before_the_project_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "pyproject.toml", '[tool.mouso]\napp = "c:app"\n')
    assert locate_app(None)[0] == "c:app"
    monkeypatch.setenv("MOUSO_APP", "b:app")
    assert locate_app(None)[0] == "b:app"
    assert locate_app("a:app")[0] == "a:app"


def test_a_file_written_after_the_folder_was_listed(folder: Path) -> None:
    assert not module_exists("late:app")
    write(folder, "late.py")
    assert load_app("late:app").name == "shop"
    assert module_exists("late:app")


@pytest.mark.parametrize(
    ("text", "with_attribute", "without"),
    [
        ("shop:app", True, False),
        ("a.b:c.d", True, False),
        ("größe:app", True, False),
        ("shop", False, True),
        ("a.b", False, True),
        ("order:17", False, False),
        ("order:", False, False),
        (":app", False, False),
        ("a:b:c", False, False),
        ("a..b:c", False, False),
        ("019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11", False, False),
        ("", False, False),
    ],
)
def test_the_form_of_an_app_path(text: str, with_attribute: bool, without: bool) -> None:
    assert looks_like_app(text) is with_attribute
    assert looks_like_app(text, attribute=False) is without


# -- paths that name nothing -----------------------------------------------------------------------------------------


def test_no_app_is_named() -> None:
    text = fails(None)
    assert all(part in text for part in ("module:attribute", "$MOUSO_APP", "pyproject.toml"))


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("a b", "write module:attribute"),
        (":app", "write module:attribute"),
        ("shop:", "did you mean 'shop:app'?"),
        ("./pack/tasks.py:app", "did you mean 'pack.tasks:app'?"),
        ("src/shop.py", "did you mean 'src.shop:app'?"),
        ("os;system:app", "write module:attribute"),
        ("x\n:app", "write module:attribute"),
    ],
)
def test_malformed(path: str, hint: str) -> None:
    text = fails(path)
    assert "is no app path" in text
    assert hint in text


def test_the_environment_holds_invalid_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_APP", os.fsdecode(b"shop\xff:app"))
    text = fails(None)
    assert text.startswith("$MOUSO_APP: ")
    assert "is not valid UTF-8" in text


def test_the_project_file_names_no_app_path(folder: Path) -> None:
    write(folder, "pyproject.toml", '[tool.mouso]\napp = "no path"\n')
    assert fails(None).startswith(f"{folder / 'pyproject.toml'}: tool.mouso.app: 'no path' is no app path")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("shpo:app", "did you mean 'shop:app'?"),
        ("shpo", "did you mean 'shop'?"),
        ("pack.tesks:app", "did you mean 'pack.tasks:app'?"),
        ("shop.app", "shop is a module, not a package; did you mean 'shop:app'?"),
        ("shop.py", "did you mean 'shop'?"),
        ("inner:app", "pip install -e ."),
        ("zzzzzz:app", "check the name"),
    ],
)
def test_missing_module(folder: Path, path: str, hint: str) -> None:
    write(folder, "shop.py")
    write(folder, "pack/tasks.py")
    write(folder, "src/inner.py")
    assert hint in fails(path)


def test_an_installed_module_without_an_app() -> None:
    text = fails("json:app")
    assert "json" in text
    assert "has no attribute 'app'; it holds no Mouso app" in text


def test_a_file_with_the_name_of_a_standard_module(folder: Path) -> None:
    write(folder, "queue.py")
    assert "rename the file" in fails("queue:app")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("shop:ap", "has no attribute 'ap'; did you mean 'app'?"),
        ("shop:nothing", "has no attribute 'nothing'; its app is called 'app'"),
        ("shop:app.nothing", "has no attribute 'app.nothing'"),
        ("shop:add", "shop:add is a Task"),
        ("shop:number", "shop:number is a int"),
        ("empty:app", "has no attribute 'app'; it holds no Mouso app"),
        ("empty", "holds no Mouso app; name it as module:attribute"),
        ("two", "holds several apps; choose one of two:a, two:b"),
    ],
)
def test_missing_or_wrong_attribute(folder: Path, path: str, text: str) -> None:
    write(folder, "shop.py", APP + "@app.task\ndef add() -> None: ...\nnumber = 1\n")
    write(folder, "empty.py", "")
    write(folder, "two.py", "from mouso import Mouso\na, b = (Mouso(n, broker='memory://x') for n in 'ab')\n")
    assert text in fails(path)


def test_an_attribute_that_raises_something_else(folder: Path) -> None:
    write(folder, "lazy_mod.py", "def __getattr__(name):\n    raise RuntimeError('no')\n")
    assert "has no attribute 'app'" in fails("lazy_mod:app")


# -- modules that cannot be imported ---------------------------------------------------------------------------------

BAD = {
    "raises.py": ("x = 1\n\nraise RuntimeError('boom')\n", "raises.py, line 3: RuntimeError: boom"),
    "exits.py": ("import sys\nsys.exit('bye')\n", "exits.py, line 2 calls sys.exit('bye')"),
    "exits_plain.py": ("raise SystemExit\n", "exits_plain.py, line 1 calls sys.exit() when"),
    "base.py": ("raise BaseException('odd')\n", "base.py, line 1: BaseException: odd"),
    "syntax.py": ("x = 1\ndef f(:\n", "syntax.py, line 2: SyntaxError: invalid syntax"),
    "tabs.py": ("if 1:\n\tx = 1\n        y = 2\n", "tabs.py, line 3: TabError:"),
    "missing.py": (
        "\nimport no_such_thing\n",
        "missing.py, line 2: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "name.py": ("from json import nothing\n", "name.py, line 1: ImportError: cannot import name 'nothing'"),
    "url.py": ("from mouso import Mouso\napp = Mouso(broker='redis//u:secret@h')\n", "url.py, line 2: the broker URL"),
    "twice.py": (
        APP + "def f(): ...\napp.task(name='x')(f)\napp.task(name='x')(f)\n",
        "twice.py, line 5: a task called 'x' is registered already",
    ),
    "escape.py": ("raise ValueError('a\\x1b[31m\\nb')\n", "escape.py, line 1: ValueError: a\\x1b[31m b"),
    "mute.py": (
        "class E(Exception):\n    def __str__(self): raise OSError\nraise E\n",
        "mute.py, line 3: E: E",
    ),
    "quits.py": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E\n",
        "quits.py, line 3: E: E",
    ),
    "library.py": ("import json\njson.loads('{')\n", "library.py, line 2: JSONDecodeError:"),
    "recursive.py": ("def f(): f()\nf()\n", "recursive.py, line 1: RecursionError:"),
    "circular.py": ("import circular_2\napp = 1\n", "circular_2.py, line 1: circular import:"),
    "circular_3.py": ("import circular_3\ncircular_3.app\napp = 1\n", "circular_3.py, line 2: circular import:"),
    "circular_self.py": ("from circular_self import app\n", "circular_self.py, line 1: circular import:"),
    "circular_late.py": (
        "import circular_late\ndef __getattr__(name): raise AttributeError(name)\ncircular_late.app\n",
        "circular_late.py, line 2: circular import: app; make the app",
    ),
    "by_hand.py": ("raise ImportError('not here', name=__name__)\n", "by_hand.py, line 1: ImportError: not here"),
    "null.py": ("x = 1\0\n", "null.py"),
    "latin.py": ("x = '\udcff'\n", "latin.py"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_an_import_that_fails_names_file_and_line(folder: Path, name: str) -> None:
    for other, (source, _) in BAD.items():
        (folder / other).write_bytes(source.encode(errors="surrogateescape"))
    write(folder, "circular_2.py", "from circular import app\nx = 1\n")
    module = name.removesuffix(".py")
    text = fails(f"{module}:app")
    assert text.startswith(f"cannot import {module!r}: ")
    assert BAD[name][1] in text
    assert "secret" not in text


@pytest.mark.parametrize("name", ["library.py", "twice.py", "raises.py", "syntax.py"])
@pytest.mark.parametrize("start", ["elsewhere", "/"])
def test_an_app_that_is_installed_elsewhere_is_blamed_for_its_own_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: str
) -> None:
    source, expected = BAD[name]
    write(folder, f"lib/site-packages/inst_{name}", source)
    write(folder, f"lib/site-packages/pack_inst/_{name}", source)
    write(folder, "elsewhere/nothing.py", "")
    monkeypatch.chdir(start)
    monkeypatch.syspath_prepend(str(folder / "lib/site-packages"))
    module = name.removesuffix(".py")
    place = folder / "lib/site-packages"
    assert fails(f"inst_{module}:app").startswith(f"cannot import 'inst_{module}': {place}/inst_{expected}")
    assert fails(f"pack_inst._{module}:app").startswith(
        f"cannot import 'pack_inst._{module}': {place}/pack_inst/_{expected}"
    )


def test_another_package_is_blamed_before_mouso_and_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "lib/site-packages/made.py", "import json\njson.loads('{')\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.syspath_prepend(str(folder / "lib/site-packages"))
    with pytest.raises(json.JSONDecodeError) as raised:
        import_module("made")
    assert loading._place("shop", raised.value, folder / "elsewhere").endswith("site-packages/made.py, line 2")


def test_a_circular_import_is_called_so_however_python_was_started(folder: Path) -> None:
    write(folder, "ring_a.py", "import ring_a\nring_a.app\n")
    write(folder, "ring_b.py", "from ring_b import app\n")
    write(folder, "tabnanny.py", "import tabnanny\ntabnanny.check\n")
    write(
        folder,
        "start.py",
        "from mouso.errors import ConfigError\n"
        "from mouso.loading import load_app\n"
        "for name in ('ring_a', 'ring_b', 'tabnanny'):\n"
        "    try:\n"
        "        load_app(f'{name}:app')\n"
        "    except ConfigError as error:\n"
        "        print(error)\n",
    )
    for how in (["-c", "import start"], ["-m", "start"], ["start.py"], ["-P", "start.py"]):
        done = subprocess.run([sys.executable, *how], capture_output=True, text=True, env={"PYTHONPATH": str(folder)})
        one, two, three = done.stdout.splitlines() or [done.stderr]
        assert one.startswith("cannot import 'ring_a': ring_a.py, line 2: circular import: ")
        assert two.startswith("cannot import 'ring_b': ring_b.py, line 1: circular import: ")
        assert three.endswith(
            f"{folder / 'tabnanny.py'} has the name of Python's own module 'tabnanny'; rename the file"
        )


def test_a_circle_through_a_package(folder: Path) -> None:
    write(folder, "pack_d/__init__.py", "from pack_d.tasks import add\napp = 1\n")
    write(folder, "pack_d/tasks.py", "def early():\n    from pack_d import app\n    return app\nadd = early()\n")
    assert os.path.join("pack_d", "tasks.py") + ", line 2: circular import: " in fails("pack_d:app")


def test_the_exception_itself_is_the_cause(folder: Path) -> None:
    write(folder, "why.py", "raise RuntimeError('boom')\n")
    with pytest.raises(ConfigError) as caught:
        load_app("why:app")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.__cause__.__traceback__ is not None


def test_a_part_of_the_package_that_is_not_there(folder: Path) -> None:
    write(folder, "pack_c/__init__.py", "import pack_c.nothing\n")
    assert os.path.join("pack_c", "__init__.py") + ", line 1: ModuleNotFoundError" in fails("pack_c:app")


def test_a_broker_that_is_gone_at_import_stays_a_broker_error(folder: Path) -> None:
    write(folder, "eager.py", "from mouso.errors import BrokerUnavailable\nraise BrokerUnavailable('gone')\n")
    with pytest.raises(BrokerUnavailable):
        load_app("eager:app")


def test_ctrl_c_while_importing_is_ctrl_c(folder: Path) -> None:
    write(folder, "slow_import.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_app("slow_import:app")


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_where_no_ctrl_c_comes_an_interrupt_is_the_modules_own(folder: Path, handler: Any) -> None:
    write(folder, "odd_import.py", "\nraise KeyboardInterrupt\n")
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert fails("odd_import:app").endswith("odd_import.py, line 2: KeyboardInterrupt: KeyboardInterrupt")
    finally:
        signal.signal(signal.SIGINT, before)


# -- the current directory was deleted -------------------------------------------------------------------------------


def test_the_current_directory_was_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "installed/tool.py")
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    shutil.rmtree(folder / "gone")
    try:
        assert "does not exist any more" in fails("nowhere:app")
        assert "no app is named" in fails(None)
        monkeypatch.syspath_prepend(str(folder / "installed"))
        assert load_app("tool:app").name == "shop"
    finally:
        os.chdir(folder)


def test_neither_click_nor_rich_is_imported() -> None:
    code = "import sys, mouso.loading; print([m for m in ('click', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mousos_own_lines_are_not_the_apps_where_it_is_checked_out_below() -> None:
    folder = Path(loading.__file__).parents[2]
    source = "from mouso import Mouso\nMouso(broker='memory://').task(backoff=0.05)(print)\n"
    with pytest.raises(MousoError) as raised:
        exec(compile(source, str(folder / "shop.py"), "exec"), {})
    assert loading._place("shop", raised.value, folder) == "shop.py, line 2"
