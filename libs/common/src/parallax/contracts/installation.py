"""What the API answers about the installation: regions, executors, the catalog, and the service itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Self

from parallax.contracts.rates import Answer


class ExecutorState(Answer):
    """A live executor, as its last heartbeat says."""

    id: str
    budget: int
    in_flight: int
    models: tuple[str, ...]
    endpoint_state: Literal["ready", "throttled", "unavailable"]
    last_error: str | None
    started_at: datetime
    heard_at: datetime


class RegionState(Answer):
    """What a region can do now."""

    id: str
    name: str
    simulated: bool
    """True when the region is only pretended."""
    executors: tuple[ExecutorState, ...]
    budget: int
    in_flight: int
    queue_depth: int | None
    """Executions waiting for an executor; ``null`` when the broker cannot be asked."""
    models: tuple[str, ...]
    """Catalog names of the models that run here."""
    last_error: str | None


class Regions(Answer):
    """Every region of the catalog."""

    regions: tuple[RegionState, ...]


class CatalogRegion(Answer):
    """A region jobs may name."""

    id: str
    name: str
    simulated: bool


class CatalogModel(Answer):
    """A model jobs may name."""

    id: str
    upstream: str
    regions: tuple[str, ...]


class CatalogAnswer(Answer):
    """What jobs may ask for, without addresses of endpoints."""

    regions: tuple[CatalogRegion, ...]
    models: tuple[CatalogModel, ...]
    currency: str | None
    prices_as_of: str | None
    gpu_second: Mapping[str, float]


class Liveness(Answer):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(Answer):
    """Whether the service can do its work."""

    ready: bool
    probes: dict[str, bool]

    @classmethod
    def of(cls, probes: dict[str, bool]) -> Self:
        """Ready when every probe says so."""
        return cls(ready=all(probes.values()), probes=probes)

    @property
    def status_code(self) -> int:
        """The HTTP status it is told with."""
        return 200 if self.ready else 503
