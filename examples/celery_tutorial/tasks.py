"""Celery's first steps: ``from celery import Celery`` has become the line below, and the broker is a file."""

from mouso import Mouso as Celery

app = Celery("tasks", broker="sqlite:///mouso.db")


@app.task
def add(x: int, y: int) -> int:
    return x + y
