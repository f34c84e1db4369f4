"""Rules over queues that Lambda functions receive from, for every format. Pure.

Source: AWS Lambda, "Configuring your queue to use with Lambda", "Handling errors for an SQS event source", and
"Configuring scaling behavior for SQS event source mappings": five concurrent batches to begin with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smartpipe.doctor.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smartpipe.ci_formats import Place
    from smartpipe.doctor.findings import Figure, Severity

VISIBILITY_FACTOR = 6
DEFAULT_VISIBILITY_SECONDS = 30
DEFAULT_FUNCTION_SECONDS = 3
DEFAULT_BATCH = 10
MAX_BATCH_WITHOUT_WINDOW = 10
MIN_CONCURRENCY = 5
"""Lambda begins with five batches at a time."""
MIN_RECEIVES = 5
PARTIAL_RESPONSES = "ReportBatchItemFailures"


class Words(NamedTuple):
    """The names of settings in one format, for remedies."""

    responses: str = f"FunctionResponseTypes: [{PARTIAL_RESPONSES}]"
    visibility: str = "VisibilityTimeout"
    timeout: str = "Timeout"
    window: str = "MaximumBatchingWindowInSeconds"
    batch: str = "BatchSize"
    reserved: str = "ReservedConcurrentExecutions"
    concurrency: str = "ScalingConfig.MaximumConcurrency"
    redrive: str = "RedrivePolicy"


class Source(NamedTuple):
    """A queue as the source of a function. A fact is None if the file does not have it, or not as a number.

    Args:
        resource: Its name in findings.
        is_partial: Whether the function reports the failed messages of a batch.
        visibility, timeout, window: Seconds. The first is of the queue, the second of the function.
        batch: The largest number of messages for one call.
        is_fifo: Whether the queue is a FIFO queue.
        reserved, concurrency: The reserved concurrency of the function, and the maximum concurrency of this source.
        receives: The maxReceiveCount of the queue; 0 if it has no dead-letter queue.
    """

    resource: str
    place: Place
    words: Words
    is_partial: bool
    visibility: float | None = None
    timeout: float | None = None
    window: float | None = 0
    batch: float | None = DEFAULT_BATCH
    is_fifo: bool | None = None
    reserved: float | None = None
    concurrency: float | None = None
    receives: float | None = None

    def make_finding(
        self, message: str, remedy: str, figures: dict[str, Figure] | None = None, milder: Severity | None = None
    ) -> Finding:
        """Return a finding about it."""
        return Finding(
            code="SP206",
            resource=self.resource,
            message=message,
            remedy=remedy,
            figures=figures or {},
            place=self.place,
            milder=milder,
        )


def find_source_mistakes(source: Source) -> Iterator[Finding]:
    """SP206: messages that come back while the function still runs, and batches that fail as a whole."""
    words = source.words
    if not source.is_partial:
        yield source.make_finding(
            f"it does not have {PARTIAL_RESPONSES}: one failed message makes Lambda repeat the batch, also the "
            "messages that were handled",
            f"set {words.responses}",
        )
    if source.visibility is not None and source.timeout is not None and source.window is not None:
        needed = VISIBILITY_FACTOR * source.timeout + source.window
        if source.visibility < needed:
            yield source.make_finding(
                f"the visibility timeout of its queue is {source.visibility:g} s, and AWS asks for {needed:g} s: "
                f"{VISIBILITY_FACTOR} times the function's timeout of {source.timeout:g} s, and the batching window. "
                "If Lambda is throttled, messages are delivered again while it still retries them",
                f"set {words.visibility} of the queue to {needed:g}, or lower the function's {words.timeout}",
                {
                    "visibility_seconds": source.visibility,
                    "timeout_seconds": source.timeout,
                    "needed_seconds": needed,
                },
            )
    yield from _find_batch_mistakes(source)
    yield from _find_concurrency_mistakes(source)
    yield from _find_redrive_mistakes(source)


def _find_batch_mistakes(source: Source) -> Iterator[Finding]:
    """SP206: batches that AWS refuses."""
    words, batch = source.words, source.batch
    if batch is not None and batch > MAX_BATCH_WITHOUT_WINDOW and source.window == 0 and source.is_fifo is not True:
        yield source.make_finding(
            f"a batch of {batch:g} messages needs a batching window of at least 1 s: AWS refuses the mapping",
            f"set {words.window}, or lower {words.batch} to {MAX_BATCH_WITHOUT_WINDOW}",
            {"batch": batch},
        )
    if source.is_fifo and batch is not None and batch > MAX_BATCH_WITHOUT_WINDOW:
        yield source.make_finding(
            f"a FIFO queue delivers at most {MAX_BATCH_WITHOUT_WINDOW} messages in a batch, and {words.batch} is "
            f"{batch:g}: AWS refuses the mapping",
            f"lower {words.batch} to {MAX_BATCH_WITHOUT_WINDOW}",
            {"batch": batch},
        )
    if source.is_fifo and source.window:
        yield source.make_finding(
            "a FIFO queue has no batching window: AWS refuses the mapping",
            f"remove {words.window}",
            {"window_seconds": source.window},
        )


def _find_concurrency_mistakes(source: Source) -> Iterator[Finding]:
    """SP206: Lambda receives more batches than it may run, and the throttled ones count as deliveries."""
    words, reserved = source.words, source.reserved
    if reserved is None:
        return
    wanted = MIN_CONCURRENCY if source.concurrency is None else source.concurrency
    if reserved < wanted:
        limit = f"{words.concurrency} is {wanted:g}" if source.concurrency else f"Lambda begins with {wanted:g} batches"
        yield source.make_finding(
            f"the function runs at most {reserved:g} times at once, and {limit}: Lambda receives messages that it "
            "cannot handle. Each counts as a delivery, and SQS moves it to the dead-letter queue in the end, although "
            "the function has never seen it",
            f"set {words.concurrency} to {max(2, reserved):g} or less, and {words.reserved} not below it",
            {"reserved": reserved, "wanted": wanted},
        )


def _find_redrive_mistakes(source: Source) -> Iterator[Finding]:
    """SP206: a queue without a dead-letter queue, or one that gets messages after few deliveries."""
    words = source.words
    if source.receives == 0:
        yield source.make_finding(
            "its queue has no dead-letter queue: a message that always fails is repeated until SQS deletes it, and on "
            "a FIFO queue it holds up its group",
            f"set {words.redrive} of the queue",
            milder="warning",
        )
    elif source.receives is not None and source.receives < MIN_RECEIVES:
        yield source.make_finding(
            f"its queue gives a message up after {source.receives:g} deliveries, and throttled calls count too: AWS "
            f"asks for {MIN_RECEIVES} or more",
            f"set maxReceiveCount in {words.redrive} of the queue to {MIN_RECEIVES} or more",
            {"receives": source.receives},
            milder="warning",
        )


def describe_unknown(source: Source) -> Iterator[str]:
    """Yield a sentence if the visibility timeout cannot be compared with the function's timeout."""
    if None in (source.visibility, source.timeout, source.window):
        yield (
            f"the timeouts of queue and function of {source.resource} ({source.place.file}:{source.place.line}): the "
            "file does not have both as numbers"
        )
