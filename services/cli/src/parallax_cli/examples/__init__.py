"""Files that ship with the command: the demo, the job file that ``parallax init`` writes, the local catalog."""

from importlib.resources import files
from pathlib import Path


def path(name: str) -> Path:
    """A packaged example."""
    return Path(str(files(__name__) / name))


def local_catalog_path() -> Path:
    """The catalog of the embedded default, whose endpoints are replaced by the local model server's address."""
    return Path(str(files("parallax") / "catalog.local.yaml"))
