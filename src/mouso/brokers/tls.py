"""TLS as the parameters of a broker's URL describe it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping

from mouso.config import one_line
from mouso.errors import ConfigError


def context(params: Mapping[str, str]) -> ssl.SSLContext:
    """A context with the files that parameters name.

    Raises:
        ConfigError: One of them cannot be used; it is named.
    """
    made = ssl.create_default_context()
    authority, certificate, key = (params.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile"))
    if authority is not None:
        path = authority
        _use("ssl_ca_certs", path, lambda: made.load_verify_locations(path))
    if params.get("ssl_check_hostname") == "false" or params.get("ssl_cert_reqs") == "none":
        made.check_hostname = False
    if params.get("ssl_cert_reqs") == "none":
        made.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        for name, file in ("ssl_certfile", certificate), ("ssl_keyfile", key or certificate):
            _use(name, file, lambda file=file: open(file).close())  # type: ignore[misc]  # why: binds the loop's variable
        names = "ssl_certfile" if key is None else "ssl_certfile and ssl_keyfile"
        _use(names, " and ".join(filter(None, (certificate, key))), lambda: made.load_cert_chain(certificate, key))
    elif key is not None:
        raise ConfigError(f"the broker URL has ssl_keyfile={key!r} without ssl_certfile; name the certificate as well")
    return made


def _use(names: str, file: str, step: Callable[[], object]) -> None:
    try:
        step()
    except ssl.SSLError as error:
        why = "is no certificate in PEM form" if "ca_certs" in names else "are no certificate and its key in PEM form"
        raise ConfigError(f"{names} of the broker URL: {file} {why} ({error.reason or one_line(error)})") from error
    except OSError as error:
        raise ConfigError(f"{names} of the broker URL: {file}: {error.strerror or one_line(error)}") from error
