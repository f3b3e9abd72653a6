"""The cost of a job is measured with the same real workers that the integration tests start."""

from tests.integration.conftest import bench

__all__ = ["bench"]
