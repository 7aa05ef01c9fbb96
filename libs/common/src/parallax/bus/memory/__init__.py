"""The bus inside one process: the same promises as the broker's, kept by plain data structures.

A :class:`MemoryBroker` holds the queues; every :class:`MemoryBus` is one client of it. Closing a client, or
:meth:`MemoryBroker.drop_connections`, gives its unsettled deliveries back, as the loss of a connection does.

Which consumer gets which message next is decided in one place: whenever something may have become deliverable
the broker calls ``wake``. By default that schedules :meth:`MemoryBroker.deliver_all` on the event loop; a
simulation passes its own ``wake`` and picks from :meth:`MemoryBroker.choices`.
"""

from parallax.bus.memory.broker import Choice, MemoryBroker
from parallax.bus.memory.bus import MemoryBus
from parallax.bus.memory.consumers import MemoryConsumption, MemoryDelivery, MemoryFollowing, Reply

__all__ = ["Choice", "MemoryBroker", "MemoryBus", "MemoryConsumption", "MemoryDelivery", "MemoryFollowing", "Reply"]
