"""Heavy work on one large document, in a process of its own: see :mod:`parallax.worker.process`."""
