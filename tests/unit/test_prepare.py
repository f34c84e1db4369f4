from __future__ import annotations

from typing import Any

import pytest

from smartpipe import ConfigError, Event, EventTooLarge, PublishError, Queue, Topic
from smartpipe.batching.batcher import Chunker
from smartpipe.envelope.body_encoding import BodyEncoding, PayloadLocation
from smartpipe.message import Attribute, size_bytes
from smartpipe.publisher.prepare import MANY_VALUES_CHARACTERS, EventContext, Publication, prepare, queue_of
from tests.support.events import ADA, Note, Paid, ledger, small


def test_the_type_is_an_attribute_and_counts_for_the_size() -> None:
    message = prepare(Publication(ADA), source="s").message

    assert message.attributes == {"type": Attribute("String", "member.signed_up")}
    assert message.size_bytes == len(message.body) + len("type" + "String" + "member.signed_up")


def test_sizes_count_utf8_bytes_of_the_body_and_of_names_types_and_values() -> None:
    attributes = {"größe": Attribute("String", "ä"), "raw": Attribute("Binary", b"\xff\xff\xff")}

    # 4 (emoji) + 7+6+2 (größe is 7 bytes) + 3+6+3
    assert size_bytes("🎉", attributes) == 31


def test_fault_39_an_event_too_large_in_bytes_but_not_in_characters_is_rejected_with_both_numbers() -> None:
    with pytest.raises(EventTooLarge) as caught:
        prepare(Publication(Note(text="é" * 900)), source="s")

    assert caught.value.limit_bytes == small.limit_bytes == 2_000
    assert caught.value.size_bytes > 2_000
    assert f"{caught.value.size_bytes:,}" in str(caught.value)
    assert "2,000" in str(caught.value)


def test_fault_20_an_eleventh_attribute_is_rejected_before_sns_drops_the_message() -> None:
    with pytest.raises(PublishError, match="SNS drops such a message") as caught:
        prepare(Publication(ADA, {f"a{number}": "x" for number in range(10)}), source="s")

    assert caught.value.failures[0].event is ADA


def test_nine_attributes_of_the_user_are_allowed() -> None:
    attributes = {f"a{number}": "x" for number in range(9)}

    assert len(prepare(Publication(ADA, attributes), source="s").message.attributes) == 10


@pytest.mark.parametrize("name", ["", "a b", "é", ".x", "x.", "a..b", "AWS.x", "amazon.x", "type", "x" * 257])
def test_an_attribute_name_that_sqs_refuses_is_rejected(name: str) -> None:
    with pytest.raises(PublishError, match="attribute name"):
        prepare(Publication(ADA, {name: "x"}), source="s")


def test_an_empty_attribute_value_is_rejected() -> None:
    with pytest.raises(PublishError, match="at least one character"):
        prepare(Publication(ADA, {"tenant": ""}), source="s")


def test_an_event_without_a_type_cannot_be_published() -> None:
    with pytest.raises(ConfigError, match="does not declare a type"):
        prepare(Publication(Event()), source="s")


def test_a_chunk_has_at_most_ten_entries() -> None:
    chunker: Chunker[int] = Chunker()

    chunks = [chunk for number in range(25) if (chunk := chunker.add(number))] + [chunker.take()]

    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    assert [number for chunk in chunks for number in chunk] == list(range(25))


def test_fault_38_a_chunk_stays_under_the_byte_limit_of_the_whole_request() -> None:
    chunker: Chunker[int] = Chunker(limit_bytes=262_144, size_of=lambda size: size)

    chunks = [chunk for _ in range(10) if (chunk := chunker.add(40_000))] + [chunker.take()]

    assert [len(chunk) for chunk in chunks] == [6, 4]  # 6 · 40,000 = 240,000; a seventh would be 280,000


def test_an_entry_as_large_as_the_limit_has_a_request_of_its_own() -> None:
    chunker: Chunker[int] = Chunker(limit_bytes=100, size_of=lambda size: size)

    chunks = [chunk for size in (1, 100, 1) if (chunk := chunker.add(size))] + [chunker.take()]

    assert chunks == [[1], [100], [1]]


@pytest.mark.parametrize("value", ["\x00", "\ud800", "\uffff"])
def test_fault_40_an_attribute_value_that_sqs_refuses_is_rejected(value: str) -> None:
    with pytest.raises(PublishError, match="without control characters"):
        prepare(Publication(ADA, {"tenant": value}), source="s")


@pytest.mark.parametrize("thing", [None, {"name": "Ada"}, Note])
def test_a_value_that_is_not_an_event_cannot_be_published(thing: Any) -> None:
    with pytest.raises(ConfigError, match="which is not an Event"):
        prepare(Publication(thing), source="s")


def test_an_event_may_have_exactly_the_limit_of_its_topic() -> None:
    rest = prepare(Publication(Note(text="")), source="s").message.size_bytes

    assert prepare(Publication(Note(text="x" * (2_000 - rest))), source="s").message.size_bytes == 2_000
    with pytest.raises(EventTooLarge) as caught:
        prepare(Publication(Note(text="x" * (2_001 - rest))), source="s")
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (2_001, 2_000)


def test_an_event_of_exactly_the_limit_is_not_stored_elsewhere() -> None:
    encoding = BodyEncoding(PayloadLocation.parse("memory://bucket"), payload_limit_bytes=1_000_000)
    rest = prepare(Publication(Note(text="")), source="s").message.size_bytes

    fits, exceeds = (
        prepare(Publication(Note(text="x" * (size - rest))), source="s", encoding=encoding).message
        for size in (2_000, 2_001)
    )
    assert (fits.payload, fits.size_bytes) == (None, 2_000)
    assert exceeds.payload is not None
    assert exceeds.size_bytes < 2_000


def test_the_size_counts_attributes_and_bytes_beyond_ascii() -> None:
    message = prepare(Publication(Note(text="\u20ac\U0001f389"), {"tenant": "ä"}), source="s").message

    assert message.size_bytes == size_bytes(message.body, message.attributes)
    assert message.size_bytes > len(message.body)


@pytest.mark.parametrize(
    ("publication", "code"),
    [
        (Publication(ADA, {"a b": "x"}), "InvalidAttribute"),
        (Publication(ADA, delay_seconds=5), "InvalidDelay"),
        (Publication(ADA, queue=Queue("q.fifo", fifo=True)), "MissingKey"),
        (Publication(ADA, context=EventContext(event_id="")), "InvalidContext"),
    ],
)
def test_an_event_that_would_be_refused_fails_permanently_with_a_code(publication: Publication, code: str) -> None:
    with pytest.raises(PublishError) as caught:
        prepare(publication, source="s")

    [failure] = caught.value.failures
    assert (failure.code, failure.retryable, failure.event) == (code, False, ADA)
    assert bool(failure.event_id) == (code != "InvalidContext")  # an id that is refused is not repeated


@pytest.mark.parametrize(("seconds", "delay"), [(None, 0), (0, 0), (0.1, 1), (1, 1), (899.5, 900), (900, 900)])
def test_a_delay_is_rounded_up_to_whole_seconds(seconds: float | None, delay: int) -> None:
    message = prepare(Publication(ADA, queue=Queue("q"), delay_seconds=seconds), source="s").message

    assert message.delay_seconds == delay


def test_the_order_of_events_is_kept_within_a_destination_and_a_key_on_fifo_only() -> None:
    paid, queue = Paid(account="a"), Queue("q.fifo", fifo=True)
    publications = [
        Publication(paid),
        Publication(paid, queue=queue),
        Publication(paid, queue=Queue("q")),
        Publication(ADA),
    ]

    expected = [(ledger, "a"), (queue, "a"), None, None]
    assert [publication.ordered_group for publication in publications] == expected
    assert [prepare(publication, source="s").ordered_group for publication in publications] == expected
    assert Publication(Paid(account="")).ordered_group is None


def test_a_context_is_changed_field_by_field() -> None:
    first = Publication(ADA).replace_context(correlation_id="c")
    second = first.replace_context(event_id="e")

    assert Publication(ADA).context is None
    assert (first.context, second.context) == (
        EventContext(correlation_id="c"),
        EventContext(correlation_id="c", event_id="e"),
    )
    with pytest.raises((TypeError, ValueError), match="unknown"):
        first.replace_context(unknown="x")


def test_a_queue_is_named_or_passed_and_its_suffix_says_whether_it_is_fifo() -> None:
    queue = Queue("mine", retention_seconds=600)

    assert (queue_of(None), queue_of(""), queue_of(queue)) == (None, None, queue)
    assert [queue_of("mailer"), queue_of("mailer.fifo")] == [Queue("mailer"), Queue("mailer.fifo", fifo=True)]


def test_an_event_of_many_values_is_refused_in_a_large_body_only() -> None:
    class Tree(Event, topic=Topic("trees"), type="tree", version="1.0"):
        branches: list[list[int]]
        text: str = ""

    few = BodyEncoding(limit_objects=1_000)
    branches: list[list[int]] = [[]] * 2_000

    prepare(Publication(Tree(branches=branches)), source="s", encoding=few)
    with pytest.raises(PublishError, match="more than 1,000 objects and arrays") as caught:
        prepare(Publication(Tree(branches=branches, text="x" * MANY_VALUES_CHARACTERS)), source="s", encoding=few)
    [failure] = caught.value.failures
    assert (failure.code, failure.retryable) == ("TooManyValues", False)
