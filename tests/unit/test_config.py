"""Broker URLs, the default broker, and the settings in pyproject.toml."""

import os
import shutil
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.config import closest, one_line, parse_queues, printable, project_file, project_settings
from mouso.errors import ConfigError
from mouso.urls import BrokerURL, default_broker_url, default_store_url, redact
from tests.unit.nobody import as_nobody, visible_folder

# -- broker URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "scheme", "path", "params"),
    [
        ("sqlite:///mouso.db", "sqlite", "mouso.db", {}),
        ("sqlite:////var/lib/mouso.db", "sqlite", "/var/lib/mouso.db", {}),
        ("SQLite:///x.db?synchronous=NORMAL", "sqlite", "x.db", {"synchronous": "normal"}),
        ("sqlite:///a b.db", "sqlite", "a b.db", {}),
        ("sqlite:///a%20b%3Fc%25d.db", "sqlite", "a b?c%d.db", {}),
        ("sqlite:///größe.db", "sqlite", "größe.db", {}),
        ("sqlite:////tmp/a:b@c.db", "sqlite", "/tmp/a:b@c.db", {}),
        ("memory://", "memory", "", {}),
        ("memory://tests", "memory", "tests", {}),
        ("redis://localhost", "redis", "", {}),
        ("valkeys://h/3?wait=1&ssl_cert_reqs=NONE", "rediss", "3", {"wait": "1", "ssl_cert_reqs": "none"}),
        ("redis+sentinel://a,b:1/jobs/2", "redis+sentinel", "jobs/2", {}),
        ("redis+cluster://a:1,b:2", "redis+cluster", "", {}),
        ("postgres://h/db?schema=Jobs", "postgresql", "db", {"schema": "Jobs"}),
        ("postgresql:///db?host=/run/postgresql", "postgresql", "db", {"host": "/run/postgresql"}),
    ],
)
def test_a_url_that_works(url: str, scheme: str, path: str, params: dict[str, str]) -> None:
    parsed = BrokerURL.parse(url)
    assert (parsed.scheme, parsed.path, parsed.params) == (scheme, path, params)
    assert BrokerURL.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("url", "user", "password", "hosts"),
    [
        ("redis://h", "", "", (("h", 6379),)),
        ("redis://", "", "", (("localhost", 6379),)),
        ("redis://:pw@h:1/0", "", "pw", (("h", 1),)),
        ("redis://u@h", "u", "", (("h", 6379),)),
        ("redis://u%3A:%40%3A%2F%25@[::1]:7/0", "u:", "@:/%", (("::1", 7),)),
        ("redis://u:p@ss@h/0", "u", "p@ss", (("h", 6379),)),
        ("redis+sentinel://:pw@a,b:1/jobs", "", "pw", (("a", 26379), ("b", 1))),
        ("postgresql://u:pw@a,b:1/db", "u", "pw", (("a", 5432), ("b", 1))),
    ],
)
def test_a_url_of_servers(url: str, user: str, password: str, hosts: tuple[tuple[str, int], ...]) -> None:
    parsed = BrokerURL.parse(url)
    assert (parsed.user, parsed.password, parsed.hosts) == (user, password, hosts)
    assert BrokerURL.parse(str(parsed)) == parsed
    assert not password or password not in parsed.shown + parsed.server


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (5, "is no text but of type int; use for example 'sqlite:///mouso.db'"),
        (b"redis://:secret@host", "is no text but of type bytes; use"),
        ("", "is empty"),
        ("mouso.db", "has no scheme"),
        ("redis//x", "has no scheme"),
        ("sqlite:", "the broker URL 'sqlite:' lacks the slashes after sqlite:; write sqlite:///mouso.db"),
        ("SQLite:/mouso.db", "lacks the slashes after SQLite:; write sqlite:///mouso.db"),
        ("postgresql:", "the broker URL 'postgresql:' lacks the slashes after postgresql:; write postgresql://…"),
        ("valkey:localhost", "lacks the slashes after valkey:; write valkey://…"),
        ("redis:user:secret@host/x", "lacks the slashes after redis:; write redis://…"),
        ("mysql://host/x", "use sqlite:///mouso.db, or redis://…, postgresql://… or amqp://… (RabbitMQ)"),
        ("user:secret@host/x", "has no scheme"),
        ("file:///x", "no broker is called 'file'"),
        ("sqlit:///x.db", "did you mean 'sqlite'?"),
        ("sqlite://x.db", "needs three slashes before the file: sqlite:///x.db"),
        ("sqlite://", "needs three slashes before the file: sqlite:///mouso.db"),
        ("sqlite://user:secret@host/x.db", "needs three slashes"),
        ("sqlite:///", "names no file"),
        ("sqlite:///folder/", "names no file"),
        ("sqlite:///x%00.db", "holds a control character, escaped by a %"),
        ("sqlite:///x%0A.db", "holds a control character, escaped by a %"),
        ("sqlite:///x\n.db", "holds a control character"),
        ("sqlite:///x\x7f.db", "holds a control character"),
        ("sqlite:///x\udcff.db", "invalid UTF-8"),
        ("sqlite:///:memory:", "cannot be shared between processes"),
        ("sqlite:///x.db?sync=full", "unknown parameter 'sync'"),
        ("sqlite:///x.db?synchronos=full", "did you mean 'synchronous'?"),
        ("sqlite:///x.db?synchronous=off", "is none of full, normal"),
        ("sqlite:///x.db?synchronous=", "is none of full, normal"),
        ("sqlite:///x.db?synchronous=full&synchronous=full", "stands twice"),
        ("sqlite:///x.db?password=secret", "unknown parameter 'password'"),
        ("memory://x?y=1", "unknown parameter 'y'"),
        ("redis://:se:cr/et%2F?x#y@h@localhost:0/0", "has an @ after its ?; write @ : / ? # % in a user, password"),
        ("redis://:secret@localhost:0/0", "the port '0'"),
        ("rediss://:secret@localhost:65536/0", "the port '65536'"),
        ("redis://:secret@localhost:/0", "the port ''"),
        ("redis://:secret@localhost:+1/0", "the port '+1'"),
        ("redis://:secret@local host/0", "is no host"),
        ("redis://:secret@[::1/0", "is no host"),
        ("redis://:se%0Acret@localhost/0", "holds a control character, escaped by a %"),
        ("redis://:secret@localhost/x", "the database 'x'"),
        ("redis://:secret@localhost/-1", "the database '-1'"),
        ("redis://:secret@a:1,b:2/0", "use redis+sentinel:// or redis+cluster://"),
        ("redis+sentinel://:secret@a:1,b:2", "names no service; write redis+sentinel://a:1,b:2/mymaster"),
        ("redis+sentinel://:secret@a/jobs/x", "the database 'x'"),
        ("redis+cluster://:secret@a,b/1", "a Redis Cluster has no database 1"),
        ("redis://localhost?wait=-1", "wait='-1'"),
        ("redis://localhost?wait=many", "is no whole number from 0 to 99"),
        ("redis://localhost?eviction=on", "is none of refuse, allow"),
        ("redis://localhost?namespace=a b", "is no name of 1 to 64"),
        ("redis://localhost?namespace={a}", "is no name of 1 to 64"),
        ("redis://localhost?ssl_ca_certs=x", "unknown parameter 'ssl_ca_certs'"),
        ("redis+sentinel://a/jobs?sentinel_password=", "sentinel_password=***"),
        ("postgresql://u:secret@no.such.host:abc/db", "the port 'abc'"),
        ("postgresql://u:secret@::1:5432/db", "an IPv6 address stands in brackets, as [::1]:5432"),
        ("postgresql://u:secret@h/db?password=secret&schema=a b", "is no name of a schema"),
        ("amqp://u:secret@[::1]:0//", "the port '0'"),
        ("amqp://u:secret@h//?store=amqp://h", "is no URL of a store"),
        ("amqp://u:secret@h//?store=postgresql://u:secret%40h:x/db", "the port 'x'"),
        ("amqp://u:secret@h//?store=redis://:secret%40h/x", "the database 'x'"),
        ("amqp://u:secret@h//?priority=1", "unknown parameter 'priority'"),
        ("http://u:secret@h/", "no broker is called 'http'"),
    ],
)
def test_a_url_that_does_not_work(url: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BrokerURL.parse(url)
    assert text in str(caught.value)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 3, b"sqlite:///x.db"])
def test_a_url_that_is_no_text(url: object) -> None:
    with pytest.raises(ConfigError):
        BrokerURL.parse(url)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("redis://user:p@w:/%@h/0", "redis://user:***@h/0"),
        ("redis//u:pw@h", "redis//u:***@h"),
        ("postgresql:///db?user=u&password=pw&x=1", "postgresql:///db?user=u&password=***&x=1"),
        ("redis+sentinel://a/jobs?sentinel_password=pw", "redis+sentinel://a/jobs?sentinel_password=***"),
        ("x://u:a\nb@h", "x://u:***@h"),
        ("sqlite:////a:b@c", "sqlite:////a:b@c"),
        ("redis://h:1/0", "redis://h:1/0"),
        (
            "amqp://u:pw@h//?store=postgresql://v:pw%40g/db%3Fpassword%3Dpw&namespace=x",
            "amqp://u:***@h//?store=postgresql://v:***%40g/db%3Fpassword%3D***&namespace=x",
        ),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_rabbitmq_and_its_store() -> None:
    url = BrokerURL.parse("pyamqp://guest:pw@localhost//").with_store("postgres://u:pw@db/shop?schema=a")
    assert (url.scheme, url.path, url.hosts) == ("amqp", "", (("localhost", 5672),))
    assert url.params == {"store": "postgresql://u:pw@db:5432/shop?schema=a"}
    assert BrokerURL.parse(str(url)) == url
    assert "pw" not in url.shown
    assert BrokerURL.parse("amqp://a,b:1/shop").path == "shop"
    assert Mouso(broker="amqp://h", store="sqlite:///x.db").broker_url == "amqp://h:5672/?store=sqlite:///x.db"
    with pytest.raises(ConfigError, match="a store by itself; leave out store="):
        Mouso(broker="sqlite:///x.db", store="sqlite:///y.db")
    with pytest.raises(ConfigError, match="names a store already"):
        Mouso(broker="amqp://h?store=sqlite:///x.db", store="sqlite:///y.db")


def test_no_store_is_no_store_on_any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("amqp://h", "amqp://localhost", "amqp://h?namespace=x"):
        broker = Mouso("tasks", broker=url).broker
        assert (broker.capabilities.results, broker.capabilities.name) == (False, "rabbitmq without a store")
    monkeypatch.setenv("MOUSO_BROKER", "amqp://localhost")
    assert BrokerURL.parse(Mouso("tasks").broker_url).params == {}


def test_a_backend_has_a_rabbitmq_of_this_machine_keep_its_jobs_beside_the_project() -> None:
    store = {"store": default_store_url(__name__)}
    for url in ("pyamqp://guest@localhost//", "amqp://127.0.0.1", "amqp://[::1],localhost/shop"):
        assert BrokerURL.parse(Mouso("tasks", broker=url, backend="rpc://").broker_url).params == store
    assert BrokerURL.parse(Mouso("tasks", broker="amqp://h", backend="rpc://").broker_url).params == {}


# -- the default broker ----------------------------------------------------------------------------------------------


def test_the_environment_names_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_BROKER", "memory://env")
    assert default_broker_url() == "memory://env"


def test_invalid_utf8_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_BROKER", os.fsdecode(b"sqlite:///\xff.db"))
    with pytest.raises(ConfigError, match="invalid UTF-8"):
        Mouso()


@pytest.mark.parametrize("mark", ["pyproject.toml", ".git"])
def test_the_file_lies_beside_the_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    (tmp_path / mark).touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert default_broker_url() == f"sqlite:///{tmp_path / 'mouso.db'}"


def test_a_folder_with_a_question_mark_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "what?#100% & more"
    folder.mkdir()
    (folder / ".git").touch()
    monkeypatch.chdir(folder)
    app = Mouso(broker=default_broker_url())
    assert BrokerURL.parse(app.broker_url).path == str(folder / "mouso.db")


def test_the_current_directory_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.rmtree(folder)
    try:
        assert project_settings().app is None
        with pytest.raises(ConfigError, match="current directory cannot be used"):
            default_broker_url()
    finally:
        os.chdir(tmp_path)


# -- pyproject.toml --------------------------------------------------------------------------------------------------


def settings_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        project_settings(path.parent)
    text = str(caught.value)
    assert str(path) in text
    assert text.isprintable()
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pyproject.toml"


def test_no_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert project_settings(tmp_path).app is None


def test_every_key(path: Path) -> None:
    path.write_text(
        '[tool.mouso]\napp = "shop:app"\nprocesses = 4\nconcurrency = 16\nqueues = "mail=3,default"\ngrace = 30\n'
    )
    found = project_settings(path.parent)
    assert (found.app, found.processes, found.concurrency, found.queues, found.grace) == (
        "shop:app",
        4,
        16,
        "mail=3,default",
        30.0,
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends(path: Path, encoding: str, newline: str) -> None:
    path.write_bytes('[tool.mouso]\napp = "shop:app"\n'.replace("\n", newline).encode(encoding))
    assert project_settings(path.parent).app == "shop:app"


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.mouso]\napp = "outer:app"\n')
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    assert project_settings(tmp_path / "inner" / "deep").app == "outer:app"
    (tmp_path / "inner" / "pyproject.toml").write_text("")
    assert project_settings(tmp_path / "inner" / "deep").app is None
    assert project_file(tmp_path / "inner" / "deep") == tmp_path / "inner" / "pyproject.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.mouso]\nproceses = 1\n", "unknown key tool.mouso.proceses; did you mean 'processes'?"),
        ("[tool.mouso]\nzzz = 1\n", "unknown key tool.mouso.zzz; known are app, processes"),
        ('[tool.mouso]\n"\\u001b[31m" = 1\n', "unknown key tool.mouso.\\x1b[31m"),
        ("[tool.mouso]\napp = 'a:b'\napp = 'a:b'\n", "is not valid TOML: Cannot overwrite a value (at line 3"),
        ("[tool.mouso]\n[tool.mouso]\n", "is not valid TOML: Cannot declare"),
        ("[tool.mouso]\nprocesses = '4'\n", "tool.mouso.processes: expected int, got str"),
        ("[tool.mouso]\nprocesses = 1.5\n", "tool.mouso.processes: expected int, got float"),
        ("[tool.mouso]\nprocesses = true\n", "tool.mouso.processes: expected int, got bool"),
        ("[tool.mouso]\nprocesses = 0\n", "tool.mouso.processes: 0 is out of range; use 1 to 1,024"),
        ("[tool.mouso]\nprocesses = -1\n", "tool.mouso.processes: -1 is out of range"),
        ("[tool.mouso]\nprocesses = 1000000000\n", "tool.mouso.processes: 1000000000 is out of range"),
        ("[tool.mouso]\nconcurrency = 10001\n", "tool.mouso.concurrency: 10001 is out of range; use 1 to 10,000"),
        ("[tool.mouso]\ngrace = nan\n", "tool.mouso.grace: nan is out of range"),
        ("[tool.mouso]\ngrace = -0.1\n", "tool.mouso.grace: -0.1 is out of range"),
        ("[tool.mouso]\ngrace = inf\n", "tool.mouso.grace: inf is out of range"),
        ("[tool.mouso]\napp = ['a:b']\n", "tool.mouso.app: expected str, got array"),
        ("[tool.mouso]\nqueues = 'a,,b'\n", "tool.mouso.queues: queues='a,,b' names an empty queue"),
        ("[tool]\nmouso = 3\n", "tool.mouso must be a table"),
        ("[[tool.mouso]]\n", "tool.mouso must be a table"),
        ("tool = 3\n", "tool must be a table"),
        ("[tool.mouso\n", "is not valid TOML: "),
        ("x = " + "9" * 5000, "is not valid TOML: "),
        ("x = " + "[" * 20_000, "is not valid TOML: "),
    ],
)
def test_settings_that_do_not_work(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    assert message in settings_error(path)


def test_a_folder_of_that_name(path: Path) -> None:
    path.mkdir()
    assert "is a folder" in settings_error(path)


def test_a_pipe_of_that_name_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert "is no regular file" in settings_error(path)


def test_a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")
    assert "cannot read" in settings_error(path)


def test_binary(path: Path) -> None:
    path.write_bytes(b"\x7fELF\x02\x01\xff\xfe\x00")
    assert "is not UTF-8 text (byte 6)" in settings_error(path)
    path.write_bytes(b"[tool.mouso]\0")
    assert "is not valid TOML" in settings_error(path)


def test_a_file_of_1_gib(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert "is larger than 1 MiB" in settings_error(path)


def test_a_file_that_may_not_be_read() -> None:
    with visible_folder() as folder:
        path = folder / "pyproject.toml"
        path.write_text("")
        path.chmod(0)
        code = """
from mouso.config import project_settings
from mouso.errors import ConfigError
try: print(project_settings())
except ConfigError as error: print(error)
"""
        assert as_nobody(code, folder) == f"cannot read {path}: Permission denied"


def test_a_folder_above_that_may_not_be_searched() -> None:
    with visible_folder() as folder:
        inner = folder / "closed" / "inner"
        inner.mkdir(parents=True)
        code = f"""
import os
os.chdir({str(inner)!r})
os.chmod({str(inner.parent)!r}, 0)
from mouso.config import project_settings
from mouso.urls import default_broker_url
print(project_settings().app, default_broker_url())
"""
        inner.chmod(0o777)
        if os.geteuid() == 0:
            os.chown(inner.parent, 65534, 65534)
        try:
            text = as_nobody(code, folder)
        finally:
            inner.parent.chmod(0o755)
        assert text.startswith("None sqlite:///")


# -- queues ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "queues"),
    [
        ("mail", (("mail", 1),)),
        ("mail=3,default", (("mail", 3), ("default", 1))),
        (" mail = 1000 , low ", (("mail", 1000), ("low", 1))),
    ],
)
def test_parse_queues(text: str, queues: tuple[tuple[str, int], ...]) -> None:
    assert parse_queues(text) == queues


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names an empty queue"),
        ("a,", "names an empty queue"),
        ("=3", "names an empty queue"),
        ("a=0", "the weight of queue 'a' is '0'; use a whole number from 1 to 1000"),
        ("a=1001", "the weight of queue 'a'"),
        ("a=-1", "the weight of queue 'a'"),
        ("a=1.5", "the weight of queue 'a'"),
        ("a=", "the weight of queue 'a'"),
        ("a=b", "the weight of queue 'a'"),
        ("a=٣", "the weight of queue 'a'"),
        ("a=1=2", "the weight of queue 'a'"),
        ("a=" + "9" * 5000, "the weight of queue 'a'"),
        ("a,b=2,a", "queue 'a' stands twice"),
        ("a b", "queue name 'a b' is not usable"),
        ("../x", "is not usable"),
        ("x" * 256, "is not usable"),
    ],
)
def test_queues_that_do_not_work(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_queues(text)
    assert message in str(caught.value)


# -- words -----------------------------------------------------------------------------------------------------------


def test_closest() -> None:
    assert closest("redsi", ["redis", "sqlite"]) == "did you mean 'redis'?"
    assert closest("shpo", ["shop"], "{}:app") == "did you mean 'shop:app'?"
    assert closest("zzz", ["redis"]) == ""
    assert closest("ad", ["bad", "add", "cad"]) == "did you mean 'add'?"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢", "plain ä 漢"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\t", "a\\nb\\t"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\udcff", "\\udcff"),
        ("\x00", "\\x00"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\x07")) == "a b\\x07"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 10_000))) == 500
