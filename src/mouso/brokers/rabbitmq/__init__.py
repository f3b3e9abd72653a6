"""The RabbitMQ brokers: with a store, which remembers the jobs while RabbitMQ carries the news of them, and without."""

from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.brokers.rabbitmq.broker import RabbitBroker

__all__ = ["LoneRabbitBroker", "RabbitBroker"]
