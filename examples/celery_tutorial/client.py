"""Celery's first steps: the caller, unchanged."""

from tasks import add  # type: ignore[import-not-found]  # why: it lies beside this file, not below the checkout's root

if __name__ == "__main__":
    result = add.delay(4, 4)
    print(result.get(timeout=30))
    print(result.ready())
