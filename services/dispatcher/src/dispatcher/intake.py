"""Reads submissions without holding up the event loop: large ones in a process of their own, one at a time."""

from dispatcher.submission import Refusal, Submission, job_id_in, outcome, read_submission, refused
from parallax.contracts.intake import Offer
from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.problem import Problem
from parallax.contracts.submission import OFFER
from parallax.worker.process import LARGE_BYTES, Worker, WorkerFailedError


class Intake:
    """Reads submissions."""

    def __init__(self, offer: Offer, *, worker: Worker | None = None) -> None:
        self._offer = offer
        self._offer_document = OFFER.dump_json(offer)
        self._worker = worker or Worker("dispatcher.submission:read_in_worker")

    async def read(self, body: bytes) -> Submission | Refusal:
        """The job in the body of a ``SubmitJob`` message, or what is wrong with it.

        A message that a worker could not finish is refused: another dispatcher would fare no better with it.

        Raises:
            UnavailableError: No worker can be started now.
        """
        if not LARGE_BYTES < len(body) <= MAX_JOB_BYTES:
            return read_submission(body, self._offer)
        try:
            return outcome(await self._worker.run(self._offer_document, body))
        except WorkerFailedError as error:
            return refused(job_id_in(body), [Problem(pointer="", message=str(error))])
