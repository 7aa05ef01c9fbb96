"""The catalog is checked as a whole before anything uses it."""

from pathlib import Path
from typing import Any

import pytest

import parallax
from parallax.catalog import load_catalog, offer_of, parse_catalog
from parallax.errors import InvalidInputError

REPOSITORY = Path(__file__).parents[3]
GOOD: dict[str, Any] = {
    "regions": {"us": {"name": "the United States", "endpoint": "openai+http://127.0.0.1:1/v1"}},
    "models": {"small": {"upstream": "Small/Model", "regions": ["us"]}},
}


@pytest.mark.parametrize(
    "path",
    [
        Path(parallax.__file__).parent / "catalog.local.yaml",
        REPOSITORY / "deploy/catalog.yaml",
        REPOSITORY / "deploy/catalog.compose.yaml",
    ],
    ids=lambda path: path.name,
)
def test_shipped_catalogs_are_valid(path: Path) -> None:
    catalog = load_catalog(path)
    assert set(catalog.regions) == {"us", "eu", "apac"}
    assert offer_of(catalog).regions == {"us", "eu", "apac"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": {}}, "regions"),
        ({"regions": {"all": GOOD["regions"]["us"]} | GOOD["regions"]}, "no region can be named 'all'"),
        ({"models": {"small": {"upstream": "x", "regions": ["mars"]}}}, "names region 'mars'"),
        ({"models": {"small": {"upstream": "x", "regions": []}}}, "models.small.regions"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_catalog_says_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_catalog(GOOD | change, source="catalog.yaml")


@pytest.mark.parametrize("content", [b"regions: [", b"\xff\xfe\x00"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"catalog\.yaml"):
        load_catalog(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        load_catalog(tmp_path / "nowhere.yaml")
