"""The catalog: one YAML file that names the regions, the models and where each model runs.

It is the single source of truth: the dispatcher checks jobs against it, executors find their endpoint and the
models' upstream names in it, and the Modal deployment builds its registry from it. A name it does not hold is
refused, never mapped to another one.
"""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from parallax.contracts.intake import Offer
from parallax.contracts.model import Name, RegionName, Strict
from parallax.contracts.plan import ALL_REGIONS_LANE
from parallax.errors import InvalidInputError


class Region(Strict):
    """A place where executions run."""

    name: str
    """What prompts and pages call it: ``the European Union``."""
    endpoint: str
    """Where its executors send calls: ``openai+http://HOST:PORT/v1``, ``openai+https://…`` or ``modal://APP/CLASS``."""
    modal_region: str | None = None
    """Modal's own name of the region, for the deployment."""
    cold_start_s: Annotated[float, Field(ge=0, le=1200)] = 0.0
    """Extra time to the first byte while the endpoint is not known to be warm; 0 for one that is always up."""
    simulated: bool = False
    """True when the region is only pretended, as on one machine; every output says so."""
    price_multiplier: Annotated[float, Field(gt=0)] = 1.0


class ModalOptions(Strict):
    """How a model is deployed on Modal."""

    gpu: str = "L4"
    max_containers: Annotated[int, Field(ge=1)] = 2
    max_inputs: Annotated[int, Field(ge=1)] = 32
    """Concurrent requests one container takes."""
    scaledown_window_s: Annotated[int, Field(ge=2)] = 300
    startup_timeout_s: Annotated[int, Field(ge=1)] = 900
    timeout_s: Annotated[int, Field(ge=1)] = 1200
    max_model_len: Annotated[int, Field(ge=256)] = 8192
    snapshot: Literal["off", "memory", "gpu"] = "off"
    """What a container's start may skip: nothing, importing the libraries, or loading the engine as well (alpha)."""


class Model(Strict):
    """A model as the installation offers it."""

    upstream: str
    """The name the endpoint knows it by, for example ``Qwen/Qwen2.5-1.5B-Instruct``."""
    regions: Annotated[tuple[RegionName, ...], Field(min_length=1)]
    revision: str | None = None
    modal: ModalOptions | None = None


class Prices(Strict):
    """What a second of GPU costs, for estimates only: dated, and to be edited."""

    as_of: Annotated[date, Field(strict=False)]
    currency: str = "USD"
    gpu_second: Mapping[str, Annotated[float, Field(ge=0)]] = {}
    """Price by GPU type; a region's ``price_multiplier`` is applied to it."""


class Catalog(Strict):
    """Regions and models of one installation."""

    regions: Annotated[Mapping[RegionName, Region], Field(min_length=1)]
    models: Annotated[Mapping[Name, Model], Field(min_length=1)]
    prices: Prices | None = None

    @model_validator(mode="after")
    def _no_region_is_called_as_the_lane_of_all(self) -> Self:
        if ALL_REGIONS_LANE in self.regions:
            raise ValueError(f"no region can be named {ALL_REGIONS_LANE!r}: that names all of them together")
        return self

    @model_validator(mode="after")
    def _models_run_in_known_regions(self) -> Self:
        for name, model in self.models.items():
            for region in model.regions:
                if region not in self.regions:
                    known = ", ".join(self.regions)
                    raise ValueError(f"model {name!r} names region {region!r}; known regions: {known}")
        return self

    def models_in(self, region: str) -> dict[str, Model]:
        """The models that run in a region, by catalog name."""
        return {name: model for name, model in self.models.items() if region in model.regions}


def load_catalog(path: Path) -> Catalog:
    """Read and check a catalog file.

    Raises:
        InvalidInputError: The file is missing, is not YAML, or breaks a rule; the message says where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"catalog {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"catalog {path}: is not YAML: {error}") from error
    return parse_catalog(document, source=str(path))


def parse_catalog(document: object, *, source: str) -> Catalog:
    """Check a catalog that was already read.

    Raises:
        InvalidInputError: The document breaks a rule; one line per problem, with its place.
    """
    try:
        return Catalog.model_validate(document, strict=False)
    except ValidationError as error:
        lines = [f"catalog {source}: {'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
        raise InvalidInputError("\n".join(lines)) from error


def offer_of(catalog: Catalog) -> Offer:
    """What jobs may ask of this installation."""
    return Offer(
        regions=frozenset(catalog.regions),
        models={name: frozenset(model.regions) for name, model in catalog.models.items()},
    )
