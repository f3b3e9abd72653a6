"""What every suite shares: their order, a clean environment, and the search for leaks."""

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import hypothesis
import pytest

from tests import again, brokers, leaks, stalls

# Quick and telling ones first. A folder that is not named here comes between "docs" and "integration".
SUITES = ("unit", "model", "conformance", "docs", "", "integration", "browser", "chaos", "budget")

hypothesis.settings.register_profile("mouso", deadline=None)
hypothesis.settings.load_profile("mouso")


def pytest_addoption(parser: pytest.Parser) -> None:
    brokers.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the run independent of the caller's settings, and its processes recognisable."""
    for name in [name for name in os.environ if name.startswith("MOUSO_")]:
        if not name.startswith("MOUSO_TEST_"):
            del os.environ[name]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; others inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leaks.mark_environment()
    stalls.watch()
    config.pluginmanager.register(SharedFixtures())
    config.pluginmanager.register(brokers)
    config.pluginmanager.register(again)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the suites in order and refuses a `leaks` marker without its reason."""
    items.sort(key=lambda item: _rank(item, config))
    for item in items:
        marker = item.get_closest_marker("leaks")
        if marker is not None and not _reason(marker):
            raise pytest.UsageError(f'{item.nodeid}: say why: @pytest.mark.leaks("…")')


def _rank(item: pytest.Item, config: pytest.Config) -> int:
    parts = item.path.relative_to(config.rootpath).parts if item.path.is_relative_to(config.rootpath) else ()
    suite = parts[1] if len(parts) > 2 and parts[1] in SUITES else ""
    return SUITES.index(suite)


def _reason(marker: pytest.Mark) -> str:
    return str(marker.kwargs.get("reason") or (marker.args[0] if marker.args else "")).strip()


class SharedFixtures:
    """Expects what a fixture of wider scope makes to outlive the test that asked for it first.

    A plugin of its own: for a session's fixtures pytest does not call the hooks of a folder's conftest.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        with leaks.lasting():
            return (yield)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves threads, processes or open files; `@pytest.mark.leaks("why")` lets it."""
    if request.node.get_closest_marker("leaks") is not None:
        with leaks.lasting():
            yield
        return
    before = leaks.Snapshot.take()
    yield
    if found := leaks.left_behind(before):
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)
