"""The bus on RabbitMQ (3.10 to 4.x), over AMQP 0-9-1.

It opens connections with aio-pika, works on the channels of aio-pika's protocol layer (aiormq), and keeps them and
its consumers alive by itself: recovery is where this bus makes promises (see the modules), so it must own it. No
other package imports either library.
"""

from parallax.bus.amqp.bus import AmqpBus, connect

__all__ = ["AmqpBus", "connect"]
