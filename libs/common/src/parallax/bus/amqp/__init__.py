"""The bus on RabbitMQ (3.10 to 4.x), over AMQP 0-9-1.

It speaks through aiormq, the protocol layer of aio-pika, and keeps connections, channels and consumers alive by
itself: recovery is where this bus makes promises (see the modules), so it must own it. No other package imports
either library.
"""

from parallax.bus.amqp.bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
