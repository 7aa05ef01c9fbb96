"""The bus on RabbitMQ (3.10 to 4.x), over AMQP 0-9-1.

It works on the connections and channels of a protocol library (aiormq), and keeps them and its consumers alive by
itself: recovery is where this bus makes promises, so it must own it. What happens when is decided by pure functions in
``states``; the modules beside it carry it out. No other package imports the library.
"""

from parallax.bus.amqp.bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
