"""The message bus: one port, an implementation on RabbitMQ and one in memory."""
