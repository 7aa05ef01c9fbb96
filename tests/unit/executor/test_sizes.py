"""Whatever a model answers, its fact fits into one message of the broker."""

from executor.endpoints.answers import MAX_TEXT_CHARS
from executor.endpoints.modal_answers import model_answer
from executor.execution import MAX_RECORDED_ATTEMPTS
from parallax.bus.amqp.publisher import MAX_BODY_BYTES
from parallax.contracts.job import MAX_QUESTION_CHARS, MAX_SYSTEM_PROMPT_CHARS
from parallax.contracts.messages import encode
from parallax.contracts.outcomes import ChatMessage, ErrorInfo
from tests.fakes.facts import observed, plan

WORST = "\x01"
"""Control characters take six bytes in JSON, more than any other."""


def test_the_largest_fact_fits_into_a_message() -> None:
    batch = plan(models=1)
    fact = observed(batch, batch.cells[0], text=WORST * MAX_TEXT_CHARS)
    error = ErrorInfo(error_class="server", code="http_500", message=WORST * 2_000, retryable=True)
    attempt = fact.attempts[0].model_copy(update={"error": error, "provider_call_id": WORST * 2_000})
    prompt = (
        ChatMessage(role="system", content=WORST * MAX_SYSTEM_PROMPT_CHARS),
        ChatMessage(role="user", content=WORST * MAX_QUESTION_CHARS),
    )
    largest = fact.model_copy(update={"messages": prompt, "attempts": (attempt,) * (MAX_RECORDED_ATTEMPTS + 10)})
    assert 0.9 * MAX_BODY_BYTES < len(encode(largest)) + 1_000_000 < MAX_BODY_BYTES, "with room for the receipt"


def test_text_and_refusal_share_one_bound() -> None:
    answer = model_answer({"text": "t" * (MAX_TEXT_CHARS - 2), "refusal": "refused"})
    assert answer.refusal == "re"
    assert model_answer({"text": "t" * MAX_TEXT_CHARS, "refusal": "refused"}).refusal is None
    assert model_answer({"text": "", "refusal": ""}).refusal is None
