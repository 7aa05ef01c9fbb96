"""Text made fit to be stored."""

from hypothesis import given
from hypothesis import strategies as st

from parallax.text import clean, storable


@given(text=st.text(st.characters(exclude_categories=[])))
def test_storable_text_is_valid_and_has_no_nul(text: str) -> None:
    kept = storable(text)
    assert "\0" not in kept
    kept.encode()
    assert storable(kept) == kept
    if "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text):
        assert kept == text


def test_what_was_replaced_is_counted() -> None:
    assert clean("a\0b\ud800c") == ("a\ufffdb\ufffdc", 2)
