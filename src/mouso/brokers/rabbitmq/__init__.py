"""The RabbitMQ broker: a store remembers the jobs, RabbitMQ carries the news of them."""

from mouso.brokers.rabbitmq.broker import RabbitBroker

__all__ = ["RabbitBroker"]
