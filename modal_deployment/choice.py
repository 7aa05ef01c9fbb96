"""What is chosen when an app is deployed: which region of the catalog it serves."""

import importlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import modal

from modal_deployment.plan import PLAN_VARIABLE, ModelPlan, RegionPlan
from parallax.catalog import Catalog, ModalOptions, load_catalog
from parallax.errors import InvalidInputError

CATALOG_VARIABLE: Final = "PARALLAX_CATALOG"
DEFAULT_CATALOG: Final = Path(__file__).parent.parent / "deploy" / "catalog.yaml"
CLASS_NAME: Final = "Inference"
"""The class of the shared definition; Modal finds classes by their global name, so it is the same in every app."""


def catalog_path() -> Path:
    """The catalog to deploy from."""
    return Path(os.environ.get(CATALOG_VARIABLE, DEFAULT_CATALOG))


def plan_region(catalog: Catalog, region_name: str) -> RegionPlan:
    """What the app of one region serves.

    Raises:
        InvalidInputError: The catalog does not say enough, or asks of one class what it cannot be.
    """
    region = catalog.regions.get(region_name)
    if region is None:
        raise InvalidInputError(f"region {region_name!r} is not in the catalog: {', '.join(catalog.regions)}")
    if region.modal_region is None:
        raise InvalidInputError(f"region {region_name!r} has no modal_region in the catalog")
    address = urlsplit(region.endpoint)
    if address.scheme != "modal" or not address.netloc or address.path != f"/{CLASS_NAME}":
        raise InvalidInputError(
            f"region {region_name!r}: endpoint {region.endpoint!r} is not modal://APP/{CLASS_NAME}, "
            "so nothing would call the app"
        )
    models = catalog.models_in(region_name)
    if not models:
        raise InvalidInputError(f"region {region_name!r} has no models in the catalog")
    options = _shared_options(region_name, {name: model.modal or ModalOptions() for name, model in models.items()})
    return RegionPlan(
        region=region_name,
        app=address.netloc,
        modal_region=region.modal_region,
        gpu=options.gpu,
        max_containers=options.max_containers,
        max_inputs=options.max_inputs,
        scaledown_window_s=options.scaledown_window_s,
        startup_timeout_s=options.startup_timeout_s,
        timeout_s=options.timeout_s,
        snapshot=options.snapshot,
        models=tuple(
            ModelPlan(
                name=name,
                upstream=model.upstream,
                revision=model.revision,
                max_model_len=(model.modal or ModalOptions()).max_model_len,
            )
            for name, model in models.items()
        ),
    )


def _shared_options(region_name: str, options: dict[str, ModalOptions]) -> ModalOptions:
    """The options that every model of the region shares; only the length of the context may differ."""
    distinct = {name: option.model_copy(update={"max_model_len": 256}) for name, option in options.items()}
    first_name, first = next(iter(distinct.items()))
    for name, option in distinct.items():
        if option != first:
            raise InvalidInputError(
                f"region {region_name!r}: models {first_name!r} and {name!r} have different modal options; "
                "they are served by one class, so only max_model_len may differ"
            )
    return first


def define(region_name: str) -> modal.App:
    """The app of one region, from the catalog. One process defines one region: the definition is global.

    Raises:
        InvalidInputError: The catalog cannot be read or does not fit.
    """
    os.environ[PLAN_VARIABLE] = plan_region(load_catalog(catalog_path()), region_name).to_json()
    definition = importlib.import_module("modal_deployment.definition")
    if definition.PLAN.region != region_name:
        raise InvalidInputError(f"this process already defined the app of region {definition.PLAN.region!r}")
    app: modal.App = definition.app
    return app
