"""Runs a test again that failed while the machine stood still: that tells nothing of the program, and is told."""

import time

import pytest
from _pytest.runner import runtestprotocol

from tests import stalls

LOST = 1.0
"""Seconds of stalls within one test from which on its failure does not count."""
_PROPERTY = "the machine stood still"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """What pytest itself does, once or twice."""
    if not isinstance(item, pytest.Function):
        return None
    began = time.monotonic()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    lost = stalls.stalled(began, time.monotonic())
    failed = [report for report in reports if report.failed]
    if lost > LOST and failed:
        why = f"run again, as the machine stood still for {lost:.1f} s: {item.nodeid}: {_said(failed[0])}"
        item._initrequest()  # its fixtures are made anew
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            report.user_properties.append((_PROPERTY, why))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _said(report: pytest.TestReport) -> str:
    """What a failure said, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((str(report.longrepr) if crash is None else str(crash.message)).split())[:1000]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names those that were run again."""
    reports = [report for name in ("passed", "failed", "error") for report in terminalreporter.stats.get(name, [])]
    found = [dict(report.user_properties).get(_PROPERTY) for report in reports if isinstance(report, pytest.TestReport)]
    for why in dict.fromkeys(filter(None, found)):
        terminalreporter.write_line(str(why))
