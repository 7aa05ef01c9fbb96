"""What the catalog says about a region becomes what its app serves, exactly."""

from pathlib import Path

import pytest

from modal_deployment.choice import plan_region
from modal_deployment.plan import PLAN_VARIABLE, RegionPlan
from parallax.catalog import Catalog, load_catalog
from parallax.errors import InvalidInputError

PRODUCTION = Path(__file__).parents[3] / "deploy" / "catalog.yaml"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(PRODUCTION)


@pytest.mark.parametrize(
    ("region", "app", "modal_region"),
    [("us", "parallax-us", "us"), ("eu", "parallax-eu", "eu"), ("apac", "parallax-apac", "ap")],
)
def test_each_region_has_its_app_pinned_to_its_place(
    catalog: Catalog, region: str, app: str, modal_region: str
) -> None:
    plan = plan_region(catalog, region)
    assert (plan.region, plan.app, plan.modal_region) == (region, app, modal_region)


@pytest.mark.parametrize("region", ["us", "eu", "apac"])
def test_the_registry_holds_exactly_two_models_with_pinned_weights(catalog: Catalog, region: str) -> None:
    models = plan_region(catalog, region).models
    assert [(model.name, model.upstream) for model in models] == [
        ("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct"),
    ]
    assert all(model.revision and len(model.revision) == 40 for model in models)


def test_there_is_no_fourth_region_and_no_third_model(catalog: Catalog) -> None:
    assert set(catalog.regions) == {"us", "eu", "apac"}
    assert set(catalog.models) == {"llama3.2-1b", "qwen2.5-1.5b"}
    assert plan_region(catalog, "eu").model("mistral-7b") is None


def test_a_plan_survives_its_way_through_the_image(catalog: Catalog) -> None:
    plan = plan_region(catalog, "apac")
    assert RegionPlan.from_environment({PLAN_VARIABLE: plan.to_json()}) == plan


def test_a_definition_without_a_plan_says_what_to_deploy() -> None:
    with pytest.raises(RuntimeError, match=r"modal_hf_us\.py"):
        RegionPlan.from_environment({})


def test_models_are_found_by_both_of_their_names(catalog: Catalog) -> None:
    plan = plan_region(catalog, "us")
    assert plan.model("qwen2.5-1.5b") == plan.model("Qwen/Qwen2.5-1.5B-Instruct")


def altered(*, region: dict[str, object] | None = None, model: dict[str, object] | None = None) -> Catalog:
    """A catalog of one region and two models, with something changed."""
    first = {"upstream": "a/a", "regions": ["us"], "modal": {"gpu": "L4", "max_model_len": 4096}}
    second = {"upstream": "b/b", "regions": ["us"], "modal": {"gpu": "L4", "max_model_len": 8192}, **(model or {})}
    place = {"name": "US", "endpoint": "modal://parallax-us/Inference", "modal_region": "us", **(region or {})}
    return Catalog.model_validate({"regions": {"us": place}, "models": {"a": first, "b": second}}, strict=False)


def test_only_the_length_of_the_context_may_differ_between_models_of_one_class() -> None:
    plan = plan_region(altered(), "us")
    assert [model.max_model_len for model in plan.models] == [4096, 8192]
    with pytest.raises(InvalidInputError, match="'a' and 'b' have different modal options"):
        plan_region(altered(model={"modal": {"gpu": "A100"}}), "us")


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"modal_region": None}, "no modal_region"),
        ({"endpoint": "openai+https://example.org/v1"}, "nothing would call the app"),
        ({"endpoint": "modal://parallax-us/Other"}, "nothing would call the app"),
    ],
)
def test_a_region_that_cannot_be_deployed_is_refused(region: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plan_region(altered(region=region), "us")


def test_an_unknown_region_is_refused_and_never_mapped(catalog: Catalog) -> None:
    with pytest.raises(InvalidInputError, match="'asia' is not in the catalog: us, eu, apac"):
        plan_region(catalog, "asia")
