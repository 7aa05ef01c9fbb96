"""What the check of a deployment finds wrong."""

from pathlib import Path
from typing import Any

import pytest

from modal_deployment.answering import Where
from modal_deployment.choice import plan_region
from modal_deployment.plan import RegionPlan
from modal_deployment.verify import answer_problems, description_problems, place_problems
from modal_deployment.web import registry
from parallax.catalog import load_catalog

CATALOG = load_catalog(Path(__file__).parents[3] / "deploy" / "catalog.yaml")
PLAN = plan_region(CATALOG, "apac")
HERE = Where(region="ap-northeast-1", cloud="aws", container="ta-1")


def described(**changes: Any) -> dict[str, Any]:
    """What the app says about itself, with something changed."""
    return {**registry(PLAN, HERE), **changes}


def test_what_the_definition_says_of_itself_is_what_is_checked() -> None:
    assert description_problems(PLAN, described()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"app": "parallax-us"}, "app is 'parallax-us', not 'parallax-apac'"),
        ({"modal_region": "us"}, "modal_region is 'us', not 'ap'"),
        ({"models": []}, "deploy it again"),
        ({"models": [*described()["models"], {"name": "mistral-7b"}]}, "mistral-7b"),
        ({"region_observed": "us-east-1"}, "runs in 'us-east-1', which is not known to lie in 'ap'"),
        ({"region_observed": None}, "does not see where it runs"),
    ],
)
def test_every_difference_is_told(changes: dict[str, Any], problem: str) -> None:
    [told] = description_problems(PLAN, described(**changes))
    assert problem in told


@pytest.mark.parametrize(
    ("region", "observed"),
    [
        ("us", "us-east-1"),
        ("us", "us-central1"),
        ("eu", "eu-west-1"),
        ("eu", "europe-west4"),
        ("apac", "ap-northeast-1"),
        ("apac", "asia-southeast1"),
        ("apac", "australia-southeast1"),
    ],
)
def test_regions_of_several_clouds_are_known(region: str, observed: str) -> None:
    assert place_problems(plan_region(CATALOG, region), observed) == []


@pytest.mark.parametrize(("region", "observed"), [("eu", "us-east-1"), ("us", "ap-south-1"), ("apac", "eu-west-1")])
def test_another_region_is_never_taken_for_the_right_one(region: str, observed: str) -> None:
    assert place_problems(plan_region(CATALOG, region), observed) != []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("hello", "not with a document"),
        ({"error": {"code": "x"}}, "answers with an error"),
        ({"text": None, "revision": PLAN.models[0].revision, "region": "ap-1"}, "without a text"),
        ({"text": "Hi", "revision": "other", "region": "ap-1"}, "revision 'other'"),
        ({"text": "Hi", "revision": PLAN.models[0].revision, "region": "us-1"}, "'us-1'"),
    ],
)
def test_an_answer_from_elsewhere_or_from_other_weights_is_told(answer: object, problem: str) -> None:
    [told] = answer_problems(PLAN, PLAN.models[0], answer)
    assert problem in told


def test_a_plan_that_was_not_deployed_differs() -> None:
    other: RegionPlan = plan_region(CATALOG, "eu")
    assert description_problems(other, described())
