"""All parts of the suite in one class."""

from __future__ import annotations

from mouso.testing.conformance.diagnosing import Diagnosing
from mouso.testing.conformance.ending import Ending
from mouso.testing.conformance.leases import Clocks, Heartbeats, Reconciling, Retiring
from mouso.testing.conformance.operating import Cancelling, Deleting, Pausing, Retrying
from mouso.testing.conformance.races import Races
from mouso.testing.conformance.reading import Reading
from mouso.testing.conformance.runs import Logs, Runs, Stacks
from mouso.testing.conformance.storing import Enqueueing, KeysPastExpiry, Opening, Transactions, UniqueKeys
from mouso.testing.conformance.transitions import Transitions
from mouso.testing.conformance.upkeep import Promoting, Pruning
from mouso.testing.conformance.waiting import Waiting, Watching
from mouso.testing.conformance.working import (
    Claiming,
    Reporting,
    Settling,
    Sharing,
    UnknownTasks,
)


class BrokerConformance(
    Opening,
    Enqueueing,
    UniqueKeys,
    KeysPastExpiry,
    Transactions,
    Ending,
    Waiting,
    Watching,
    Settling,
    Reporting,
    Runs,
    Logs,
    Stacks,
    Claiming,
    Sharing,
    UnknownTasks,
    Heartbeats,
    Reconciling,
    Retiring,
    Clocks,
    Transitions,
    Promoting,
    Pruning,
    Cancelling,
    Retrying,
    Deleting,
    Pausing,
    Reading,
    Diagnosing,
    Races,
):
    """All of it; subclass this under a name that begins with ``Test``."""
