"""How changes of a topology are carried out: stages, retries and errors; and what a comparison reads."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from smartpipe import Service
from smartpipe.errors import TopologyError, TransportError
from smartpipe.topology.aws import provision
from smartpipe.topology.aws.calls import Denied
from smartpipe.topology.aws.provision import Provisioner
from smartpipe.topology.changes import Change
from smartpipe.topology.resources import Denial, Topology
from smartpipe.topology.table_and_bucket import NO_TABLE_AND_BUCKET, TableAndBucket
from tests.support import exported
from tests.support.scripted_aws import ScriptedAws
from tests.support.virtual_time import put_retries_on_virtual_time, run_virtually

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC = Change("create", "topic", ("arn:aws:sns:eu-west-1:1:t",), {}, {})
QUEUE = Change("create", "queue", ("arn:aws:sqs:eu-west-1:1:q",), {"RedrivePolicy": {}}, {})
DEAD = Change("create", "queue", ("arn:aws:sqs:eu-west-1:1:dead",), {}, {})
SUBSCRIPTION = Change("create", "subscription", (*TOPIC.arns, *QUEUE.arns), {}, {})
SAME = Change("unchanged", "queue", ("arn:aws:sqs:eu-west-1:1:same",), {}, {})


def error(code: str, text: str = "no", *, retryable: bool = False) -> TransportError:
    return TransportError(code, text, retryable=retryable)


class Making:
    """Carries out changes in virtual time; ``errors`` has the errors of each change by its name."""

    def __init__(self) -> None:
        self.errors: dict[str, Callable[[], TransportError | None]] = {}
        self.made: list[tuple[str, float]] = []
        self.attempts: list[float] = []
        self.running = self.highest = 0
        self.seconds = self.closing_seconds = 0.0

    async def carry_out(self, _: object, change: Change) -> None:
        clock = asyncio.get_running_loop().time
        self.attempts.append(clock())
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            await asyncio.sleep(self.closing_seconds)
            self.running -= 1
        found = self.errors.get(change.name, lambda: None)()
        if found is not None:
            raise found
        self.made.append((change.name, clock()))

    def apply(self, *changes: Change) -> list[str]:
        """Make the changes, and return the names of those that were reported, in order."""
        reported: list[str] = []
        session: Any = ScriptedAws()
        provisioner = Provisioner(session, table_and_bucket=NO_TABLE_AND_BUCKET)
        run_virtually(provisioner.apply(changes, lambda change: reported.append(change.name)))
        return reported


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> Making:
    making = Making()
    put_retries_on_virtual_time(monkeypatch)
    monkeypatch.setattr(provision, "carry_out", making.carry_out)
    return making


def times(count: int, found: TransportError) -> Callable[[], TransportError | None]:
    """Return a function that returns the error this number of times."""
    left = [count]

    def next_error() -> TransportError | None:
        left[0] -= 1
        return found if left[0] >= 0 else None

    return next_error


def test_changes_are_made_stage_by_stage_and_reported_after_each(making: Making) -> None:
    making.seconds = 1.0

    assert making.apply(SUBSCRIPTION, SAME, QUEUE, TOPIC, DEAD) == ["dead", "q", "t", "t → q"]

    assert making.made == [("dead", 1.0), ("q", 2.0), ("t", 2.0), ("t → q", 3.0)]


def test_without_pending_changes_nothing_is_made(making: Making) -> None:
    assert making.apply(SAME) == []
    assert making.attempts == []


def test_at_most_eight_changes_run_at_the_same_time(making: Making) -> None:
    making.seconds = 1.0

    making.apply(*(TOPIC._replace(arns=(f"arn:aws:sns:eu-west-1:1:t{number}",)) for number in range(20)))

    assert (len(making.made), making.highest) == (20, 8)


@pytest.mark.parametrize(
    "found",
    [
        error("Throttling", retryable=True),
        error("QueueDoesNotExist"),
        error("NotFound"),
        error("QueueDeletedRecently"),
        error("InvalidParameterValue", "Value x is invalid. Dead letter target does not exist."),
    ],
)
def test_an_error_that_may_pass_is_tried_again(
    making: Making, found: TransportError, caplog: pytest.LogCaptureFixture
) -> None:
    making.errors["q"] = times(3, found)

    with caplog.at_level(logging.WARNING, "smartpipe.topology"):
        assert making.apply(QUEUE) == ["q"]

    assert making.attempts == [0.0, 0.25, 0.75, 1.75]
    assert caplog.messages == [f"Cannot create queue q yet, retrying: {found}"]


def test_the_waits_grow_to_five_seconds(making: Making) -> None:
    making.errors["q"] = times(9, error("NotFound"))

    making.apply(QUEUE)

    waits = [after - before for before, after in zip(making.attempts, making.attempts[1:], strict=False)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("found", "seconds"),
    [(error("NotFound"), 30), (error("QueueDeletedRecently"), 90), (error("X", retryable=True), 30)],
)
def test_an_error_that_does_not_pass_ends_the_apply(making: Making, found: TransportError, seconds: float) -> None:
    making.errors["q"] = times(1_000, found)

    with pytest.raises(TopologyError) as raised:
        making.apply(QUEUE)

    assert str(raised.value) == str(found)
    assert seconds <= making.attempts[-1] < seconds + 5


def test_another_error_is_not_tried_again(making: Making, caplog: pytest.LogCaptureFixture) -> None:
    making.errors["q"] = times(1_000, error("InvalidParameter"))

    with pytest.raises(TopologyError):
        making.apply(QUEUE)

    assert making.attempts == [0.0]
    assert caplog.messages == []


def test_an_error_in_our_code_is_raised_as_it_is(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("wrong")

    monkeypatch.setattr(provision, "carry_out", fail)

    with pytest.raises(ValueError, match="wrong"):
        making.apply(QUEUE)


def test_all_errors_of_a_stage_are_reported_and_later_stages_do_not_begin(making: Making) -> None:
    making.errors = {
        "q": times(1, error("A", "first")),
        "t": times(1, Denied([Denial("sns:CreateTopic", TOPIC.arns[0], "you may not")])),
        "u": times(1, Denied([Denial("sns:CreateTopic", "arn:u", "you may not")])),
    }
    other = TOPIC._replace(arns=("arn:aws:sns:eu-west-1:1:u",))

    with pytest.raises(TopologyError) as raised:
        making.apply(QUEUE, TOPIC, other, DEAD, SUBSCRIPTION)

    first, second, hint = str(raised.value).splitlines()
    assert "first" in first
    assert second.startswith("your credentials may not call sns:CreateTopic on ")
    assert "you may not" in second
    assert "ask for this policy" in hint
    assert [name for name, _ in making.made] == ["dead"]


def test_refused_permissions_alone_are_an_error_too(making: Making) -> None:
    making.errors["t"] = times(1, Denied([Denial("sns:CreateTopic", TOPIC.arns[0])]))

    with pytest.raises(TopologyError, match="your credentials may not call sns:CreateTopic"):
        making.apply(TOPIC)


def test_an_interruption_leaves_no_change_running(making: Making) -> None:
    making.seconds = 10.0

    async def main() -> None:
        session: Any = ScriptedAws()
        applying = asyncio.create_task(Provisioner(session, table_and_bucket=NO_TABLE_AND_BUCKET).apply([QUEUE, TOPIC]))
        await asyncio.sleep(1)
        assert making.running == 2
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        assert making.running == 0

    run_virtually(main())
    assert making.made == []


def test_an_error_in_our_code_ends_the_other_changes_first(making: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    making.seconds, making.closing_seconds = 10.0, 1.0

    async def carry_out(session: object, change: Change) -> None:
        if change is TOPIC:
            await asyncio.sleep(1.0)
            raise ValueError("wrong")
        await making.carry_out(session, change)

    async def main() -> float:
        session: Any = ScriptedAws()
        with pytest.raises(ValueError, match="wrong"):
            await Provisioner(session, table_and_bucket=NO_TABLE_AND_BUCKET).apply([QUEUE, TOPIC])
        assert making.running == 0
        return asyncio.get_running_loop().time()

    monkeypatch.setattr(provision, "carry_out", carry_out)
    assert run_virtually(main()) == 2.0
    assert making.made == []


class Reader:
    """A reader of a deployed topology in which only what is declared exists."""

    denials: tuple[Any, ...] = ()

    def __init__(self, _: object) -> None:
        self.notes = ["not read"]
        self.orphans = ["arn:aws:sqs:eu-west-1:1:orphan"]
        self.knows_orphans = True
        self.asked: frozenset[str] | None = None
        READERS.append(self)

    async def read(self, desired: Topology) -> Topology:
        self.desired = desired
        return Topology({})

    async def with_sources(self, actual: Topology, external: frozenset[str]) -> Topology:
        self.asked = external
        return actual


READERS: list[Reader] = []


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[Reader]:
    READERS.clear()
    monkeypatch.setattr(provision, "TopologyReader", Reader)
    return READERS


def provisioner(settings: TableAndBucket | None = NO_TABLE_AND_BUCKET) -> Provisioner:
    session: Any = ScriptedAws()
    return Provisioner(session, table_and_bucket=settings)


async def test_a_comparison_has_the_plan_the_notes_and_what_was_read(reading: list[Reader]) -> None:
    context = await provisioner().compare(iter([exported.archive()]))

    assert context.desired is reading[0].desired
    assert {change.action for change in context.changes} == {"create"}
    assert context.pending == context.changes
    assert (context.naming.account_id, context.naming.region) == ("123456789012", "eu-west-1")
    assert (context.not_read, context.knows_orphans) == (["not read"], True)
    assert context.notes[-1] == "not read"
    assert reading[0].asked is None
    assert await provisioner().plan([exported.archive()]) == context.pending


async def test_a_comparison_warns_of_handlers_that_forget_too_early(reading: list[Reader]) -> None:
    service = Service("forgetful")
    service.subscribe(exported.AccountOpened, idempotent=True)(exported.handle)
    context = await provisioner().compare([service])
    assert context.notes == ["not read"]

    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(provision, "find_short_memories", lambda services: [f"{len(services)} forgets"])
        context = await provisioner().compare(iter([service]))
    assert context.notes == ["not read", "1 forgets"]
    assert len(reading) == 2


@pytest.mark.parametrize("ignored", [False, True])
async def test_the_errors_of_a_plan_prevent_it_unless_they_do_not_matter(
    reading: list[Reader], ignored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "find_errors", lambda *_: ["first", "second"])

    if ignored:
        assert (await provisioner().compare([exported.archive()], ignore_errors=True)).pending
        return
    with pytest.raises(TopologyError) as raised:
        await provisioner().compare([exported.archive()])
    assert str(raised.value).splitlines() == ["first", "second"]
    assert reading


async def test_a_destroy_asks_for_the_sources_of_queues(reading: list[Reader]) -> None:
    await provisioner().compare([exported.borrower()], ignore_errors=True, destroying=True)

    assert reading[0].asked == reading[0].desired.external
    assert reading[0].asked


@pytest.mark.parametrize("known", [True, False])
async def test_a_destroy_knows_the_orphans_if_aws_has_listed_them(
    reading: list[Reader], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(provision, "plan_destroy", lambda *arguments, **options: asked.append((arguments, options)))
    context = await provisioner().compare([exported.archive()])
    reading[0].knows_orphans = known
    context = provision.PlanContext(context.desired, context.actual, context.naming, reading[0])  # type: ignore[arg-type]

    context.plan_destroy()
    context.plan_destroy(orphaned=True, even_if_not_empty=True)

    orphans = reading[0].orphans if known else None
    arguments = (context.desired, context.actual, context.naming)
    assert asked == [
        (arguments, {"orphaned": False, "even_if_not_empty": False, "orphans": orphans}),
        (arguments, {"orphaned": True, "even_if_not_empty": True, "orphans": orphans}),
    ]


async def test_the_table_and_the_bucket_are_those_of_the_environment_by_default(
    reading: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMARTPIPE_CLAIM_CHECK_URL", "s3://bodies/staging")

    await provisioner(None).compare([exported.archive()])
    await provisioner().compare([exported.archive()])

    assert [list(reader.desired.of("bucket")) for reader in reading] == [["arn:aws:s3:::bodies"], []]
