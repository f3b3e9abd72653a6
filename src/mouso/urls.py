"""Broker URLs: the default one, and any other read, checked and shown without its password."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from mouso.config import closest
from mouso.errors import ConfigError


class _Values(NamedTuple):
    """What a parameter may be.

    Attributes:
        pattern: Of the whole value.
        wrong: Follows a value that does not match it.
        fold: Whether upper and lower case are the same.
    """

    pattern: str
    wrong: str
    fold: bool = False


def _one_of(*values: str) -> _Values:
    return _Values("|".join(values), f"is none of {', '.join(values)}", fold=True)


_SWITCH = _one_of("on", "off")
_TEXT = _Values(".+", "is empty")
_FILE = _Values(".+", "names no file")
_NUMBER = _Values("[0-9]{1,2}", "is no whole number from 0 to 99")
_SECONDS = _Values("[1-9][0-9]{0,6}", "is no whole number of seconds")
_STORE = _Values(r"(?!amqps?:)[a-z+]+://.*", "is no URL of a store, such as postgresql://localhost/jobs")
_NAME = _Values(r"[A-Za-z0-9_.-]{1,64}", "is no name of 1 to 64 letters, digits, '_', '.' and '-'")

_REDIS = {"namespace": _NAME, "wait": _NUMBER, "eviction": _one_of("refuse", "allow")}
_TLS = {
    "ssl_ca_certs": _FILE,
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_cert_reqs": _one_of("required", "none"),
    "ssl_check_hostname": _one_of("true", "false"),
}
_RABBIT = {"namespace": _NAME, "store": _STORE, "consumer_timeout": _SECONDS}
_SENTINEL = {"sentinel_username": _TEXT, "sentinel_password": _TEXT}

PARAMETERS: Mapping[str, Mapping[str, _Values]] = {
    "sqlite": {"synchronous": _one_of("full", "normal")},
    "redis": _REDIS,
    "rediss": {**_REDIS, **_TLS},
    "redis+sentinel": {**_REDIS, **_SENTINEL},
    "rediss+sentinel": {**_REDIS, **_TLS, **_SENTINEL},
    "redis+cluster": _REDIS,
    "rediss+cluster": {**_REDIS, **_TLS},
    "postgresql": {
        "schema": _Values(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", "is no name of a schema"),
        "notify": _SWITCH,
        "prepare": _SWITCH,
        "host": _TEXT,
        "port": _TEXT,
        "user": _TEXT,
        "password": _TEXT,
        "passfile": _FILE,
        "sslmode": _one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
        "sslrootcert": _FILE,
        "sslcert": _FILE,
        "sslkey": _FILE,
        "sslpassword": _TEXT,
        "channel_binding": _one_of("disable", "prefer", "require"),
        "target_session_attrs": _one_of("any", "read-write", "primary", "prefer-standby"),
    },
    "amqp": _RABBIT,
    "amqps": {**_RABBIT, **_TLS},
    "memory": {},
}
"""The parameters of each scheme."""

SCHEMES = tuple(PARAMETERS)
_ALIASES = {
    "valkey": "redis",
    "valkeys": "rediss",
    "redis-sentinel": "redis+sentinel",
    "redis-cluster": "redis+cluster",
    "sentinel": "redis+sentinel",
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql",
    "pyamqp": "amqp",
    "rabbitmq": "amqp",
}
_SOME = "use sqlite:///mouso.db, or redis://…, postgresql://… or amqp://… (RabbitMQ)"
_PORTS = {"sentinel": 26379, "redis": 6379, "postgresql": 5432, "amqp": 5672, "amqps": 5671}
_ESCAPE = "write @ : / ? # % in a user, password or parameter as %40 %3A %2F %3F %23 %25"


class BrokerURL(msgspec.Struct, frozen=True, kw_only=True):
    """A checked broker URL. Its text holds the password; ``shown`` does not.

    Attributes:
        path: For SQLite the file; for memory the store's name; for Redis the number of the database, or with Sentinel
            ``service`` or ``service/number``; for PostgreSQL the name of the database; for RabbitMQ the virtual host,
            empty for ``/``.
        params: Query parameters with checked names and values.
        hosts: Names or addresses, each with its port.
    """

    scheme: str
    path: str
    params: dict[str, str]
    user: str = ""
    password: str = ""
    hosts: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in self.params.items())
        if self.scheme in ("sqlite", "memory"):
            target = ("/" if self.scheme == "sqlite" else "") + quote_path(self.path)
        else:
            target = f"{self._login()}{','.join(_netloc(*host) for host in self.hosts)}/{quote_path(self.path)}"
        return f"{self.scheme}://{target}{'?' + query if query else ''}"

    def _login(self) -> str:
        if not self.user and not self.password:
            return ""
        return f"{quote(self.user, safe='')}{':' + quote(self.password, safe='') if self.password else ''}@"

    @property
    def shown(self) -> str:
        """The URL for messages, logs and pages: without its password."""
        return redact(str(self))

    @property
    def is_here(self) -> bool:
        """Whether its servers are this machine."""
        return all(host in ("localhost", "127.0.0.1", "::1") for host, _ in self.hosts)

    def with_store(self, store: str) -> BrokerURL:
        """The same with the URL of a store, for RabbitMQ.

        Raises:
            ConfigError: This broker needs none, it has one already, or that is none.
        """
        if "store" not in PARAMETERS[self.scheme]:
            raise ConfigError(f"{self.shown} is a store by itself; leave out store=")
        if not isinstance(store, str):
            kind = type(store).__name__
            raise ConfigError(f"store= is no text but of type {kind}; use for example 'sqlite:///mouso.db'")
        if "store" in self.params:
            raise ConfigError(f"the broker URL {self.shown!r} names a store already; leave out store=")
        return BrokerURL.parse(f"{self}{'&' if self.params else '?'}store={quote(store, safe='')}")

    @property
    def server(self) -> str:
        """The servers alone, for messages: ``redis://127.0.0.1:6379``."""
        return f"{self.scheme}://{','.join(_netloc(*host) for host in self.hosts)}"

    @classmethod
    def parse(cls, url: str) -> BrokerURL:
        """Reads and checks a URL.

        Raises:
            ConfigError: It cannot be used; the message never holds a password.
        """
        if not isinstance(url, str):
            kind = type(url).__name__
            raise ConfigError(f"the broker URL is no text but of type {kind}; use for example 'sqlite:///mouso.db'")
        if not url:
            raise ConfigError("the broker URL is empty; use for example sqlite:///mouso.db")
        shown = redact(url)
        if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in url):
            raise ConfigError(f"the broker URL {shown!r} holds a control character or invalid UTF-8; remove it")
        scheme, sep, rest = url.partition("://")
        if not sep:
            raise _without_slashes(url, shown)
        scheme = _scheme(scheme)
        if scheme not in SCHEMES:
            hint = closest(scheme, SCHEMES)
            raise ConfigError(f"no broker is called {scheme!r} in the URL {shown!r}; {hint or _SOME}")
        target, _, query = rest.partition("?")
        if "@" in query:  # a part of a password, which must not be shown as the name of a parameter
            raise ConfigError(f"the broker URL {shown!r} has an @ after its ?; {_ESCAPE}")
        params = _check_params(scheme, query, shown)
        if scheme == "memory":
            return cls(scheme=scheme, path=unquote(target), params=params)
        if scheme == "sqlite":
            return cls(scheme=scheme, path=_file(target, shown), params=params)
        return _server(scheme, target, params, shown)


def _scheme(given: str) -> str:
    return _ALIASES.get(given.lower(), given.lower())


def _without_slashes(url: str, shown: str) -> ConfigError:
    scheme, colon, _ = url.partition(":")
    if colon and _scheme(scheme) in SCHEMES:
        example = "sqlite:///mouso.db" if _scheme(scheme) == "sqlite" else f"{scheme}://…"
        return ConfigError(f"the broker URL {shown!r} lacks the slashes after {scheme}:; write {example}")
    return ConfigError(f"the broker URL {shown!r} has no scheme; write for example sqlite:///mouso.db")


def _file(target: str, shown: str) -> str:
    if not target.startswith("/"):
        file = target if target and "@" not in target else "mouso.db"
        raise ConfigError(f"the broker URL {shown!r} needs three slashes before the file: sqlite:///{file}")
    path = unquote(target[1:])
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ConfigError(f"the broker URL {shown!r} holds a control character, escaped by a %; remove it")
    if not path or path.endswith("/"):
        raise ConfigError(f"the broker URL {shown!r} names no file; write for example sqlite:///mouso.db")
    if path == ":memory:":
        raise ConfigError("sqlite:///:memory: cannot be shared between processes; use memory:// in tests or a file")
    return path


def _server(scheme: str, target: str, params: dict[str, str], shown: str) -> BrokerURL:
    login, _, rest = target.rpartition("@")
    user, _, password = login.partition(":")
    authority, _, path = rest.partition("/")
    kind = "sentinel" if scheme.endswith("+sentinel") else scheme if scheme in _PORTS else "redis"
    hosts = tuple(_hosts(authority, kind, shown)) if authority else ()
    if not hosts and kind != "postgresql":
        hosts = (("localhost", _PORTS[kind]),)
    if len(hosts) > 1 and scheme in ("redis", "rediss"):
        raise ConfigError(f"the URL {shown!r} names several servers; use {scheme}+sentinel:// or {scheme}+cluster://")
    if "store" in params:
        params["store"] = str(BrokerURL.parse(params["store"]))
    found = BrokerURL(
        scheme=scheme,
        path="" if kind.startswith("amqp") and path == "/" else unquote(path),
        params=params,
        user=unquote(user),
        password=unquote(password),
        hosts=hosts,
    )
    if any(ord(c) < 32 or ord(c) == 127 for c in found.user + found.password + found.path):
        raise ConfigError(f"the broker URL {shown!r} holds a control character, escaped by a %; remove it")
    _check_path(found, kind, shown)
    return found


def _hosts(authority: str, kind: str, shown: str) -> Iterator[tuple[str, int]]:
    for part in authority.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/#\s]+)(?::(.*))?", part)
        if match is None:
            hint = f"an IPv6 address stands in brackets, as [::1]:{_PORTS[kind]}"
            raise ConfigError(f"{part!r:.80} in the URL {shown!r} is no host; {hint if ':' in part else _ESCAPE}")
        host, port = match[1], match[2]
        if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise ConfigError(f"the port {port!r:.40} in the URL {shown!r} is no number from 1 to 65535; {_ESCAPE}")
        yield unquote(host.strip("[]")), int(port) if port else _PORTS[kind]


def _check_path(url: BrokerURL, kind: str, shown: str) -> None:
    number = url.path
    if kind in ("postgresql", "amqp", "amqps"):
        return
    if kind == "sentinel":
        service, _, number = url.path.partition("/")
        if not service:
            raise ConfigError(f"the URL {shown!r} names no service; write {url.server}/mymaster")
    if number and not re.fullmatch("[0-9]{1,5}", number):
        raise ConfigError(
            f"the database {number!r:.40} in the URL {shown!r} is no number; write for example {url.server}/0"
        )
    if url.scheme.endswith("+cluster") and number.strip("0"):
        raise ConfigError(f"a Redis Cluster has no database {number}; leave it out of {shown!r}")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_params(scheme: str, query: str, shown: str) -> dict[str, str]:
    allowed = PARAMETERS[scheme]
    params: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            hint = closest(name, allowed) or (f"use {', '.join(allowed)}" if allowed else "remove it")
            raise ConfigError(f"unknown parameter {name!r} in the broker URL {shown!r}; {hint}")
        values = allowed[name]
        if name in params:
            raise ConfigError(f"{name} stands twice in the broker URL {shown!r}")
        params[name] = value.lower() if values.fold else value
        if not re.fullmatch(values.pattern, params[name]):
            said = "***" if _SECRETS.search(f"?{name}=x") else repr(value)
            raise ConfigError(f"{name}={said} in the broker URL {shown!r} {values.wrong}")
    return params


_SECRETS = re.compile(r"([?&](?:\w*password|passwd|pwd|secret|token)=)[^&#]*", re.IGNORECASE)


def redact(url: str) -> str:
    """The URL with its password, if any, replaced by ``***``."""
    scheme, sep, rest = str(url).partition("://")
    if not sep:
        scheme, rest = "", str(url)
    if not rest.startswith("/"):  # else there is no authority, so no user and no password in it
        rest = re.sub(r"^([^:@]*:).*@", r"\1***@", rest, flags=re.DOTALL)
    whole = re.sub(
        r"(?<=[?&]store=)[^&]*", lambda store: quote(redact(unquote(store[0])), safe="/:*"), f"{scheme}{sep}{rest}"
    )
    return _SECRETS.sub(r"\1***", whole)


def quote_path(path: str) -> str:
    """Escapes what would end the path of a URL, and leaves the rest readable."""
    return path.replace("%", "%25").replace("?", "%3F")


def default_broker_url(module: str | None = None) -> str:
    """The URL of an app that names none.

    ``$MOUSO_BROKER`` if set, else ``mouso.db`` beside the nearest ``pyproject.toml`` or ``.git`` at or above the
    module's file, else in the current directory.

    Raises:
        ConfigError: ``$MOUSO_BROKER`` cannot be used, or the current directory was deleted.
    """
    if not (url := os.environ.get("MOUSO_BROKER")):
        return default_store_url(module)
    try:
        return str(BrokerURL.parse(url))
    except ConfigError as error:
        raise ConfigError(f"$MOUSO_BROKER: {error}") from None


def default_store_url(module: str | None = None) -> str:
    """``default_broker_url`` without a look at the environment."""
    source = getattr(sys.modules.get(module or ""), "__file__", None)
    try:
        start = Path(source).resolve().parent if source else Path.cwd()
        folder = _project_folder(start) or Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"there is no place for mouso.db: the current directory cannot be used ({error.strerror}); go to another "
            "one, or set $MOUSO_BROKER"
        ) from None
    return f"sqlite:///{quote_path(str(folder / 'mouso.db'))}"


def _project_folder(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        # os.path.exists is False where the folder may not be searched; Path.exists raises.
        if os.path.exists(folder / "pyproject.toml") or os.path.exists(folder / ".git"):
            return folder
    return None
