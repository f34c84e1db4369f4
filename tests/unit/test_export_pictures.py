from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from smartpipe import Event, FilterPolicy, Queue, RetryPolicy, Service, Topic
from smartpipe.topology.export.graph import build_graph
from smartpipe.topology.export.pictures import draw_dot, draw_mermaid
from tests.support import exported
from tests.support.exported import AccountOpened, subscribed

if TYPE_CHECKING:
    from collections.abc import Callable

busy = Topic("busy")


class Ordered(Event, topic=Topic("ordered", fifo=True), type="tests.ordered", version="1.0", key="name"):
    name: str


def event(number: int) -> type[Event]:
    class Busy(Event, topic=busy, type=f"busy.{number}", version="1.0"):
        pass

    return Busy


def test_a_flowchart_shows_who_publishes_what_to_whom() -> None:
    lines = [line.strip() for line in draw_mermaid([exported.portal(), exported.archive()]).splitlines()]

    assert 'publisher_portal("portal<br/><small>producer</small>"):::publisher' in lines
    assert 'publisher_portal -->|"account.closed<br/>account.opened"| topic_accounts' in lines
    assert 'topic_accounts -->|"account.opened"| queue_archive' in lines
    details = "<small>8 attempts, then archive-dlq</small><br/><small>by SQS after 24 receives</small>"
    assert f'queue_archive(["archive<br/>{details}"]):::queue' in lines
    assert "queue_archive --> handler_archive" in lines


@pytest.mark.parametrize(
    ("policies", "fifo", "expected"),
    [
        ([RetryPolicy(attempts=4)], False, ["4 attempts, then q-dlq", "by SQS after 24 receives"]),
        ([RetryPolicy(attempts=1)], False, ["1 attempt, then q-dlq", "by SQS after 24 receives"]),
        ([RetryPolicy(attempts=4), RetryPolicy(attempts=9)], True, ["4 to 9 attempts, then q-dlq.fifo"]),
        (
            [RetryPolicy(attempts=4, on_exhausted="halt")],
            True,
            ["q-dlq.fifo", "halts its group after the last attempt"],
        ),
    ],
)
def test_a_queue_shows_the_attempts_of_its_handlers_and_the_limit_of_sqs(
    policies: list[RetryPolicy], fifo: bool, expected: list[str]
) -> None:
    service = Service("s", queue=Queue("q", fifo=fifo))
    for policy in policies:

        @service.subscribe(Ordered if fifo else AccountOpened, retry=policy)
        async def handle(event: Event) -> None: ...

    [node] = [node for node in build_graph([service]).nodes if node.column == "queue"]

    assert list(node.lines[1 : 1 + len(expected)]) == expected


def test_a_service_that_only_publishes_is_a_producer_at_the_left() -> None:
    producer, both = Service("api", publishes=[AccountOpened]), subscribed(Service("web"), AccountOpened)

    graph = build_graph([producer, both])

    assert [(node.key, node.lines) for node in graph.nodes if node.column == "publisher"] == [
        ("api", ("api", "producer"))
    ]


def test_direct_sends_have_a_different_kind_of_arrow() -> None:
    services = [exported.portal(), exported.archive()]

    assert 'publisher_portal -.->|"directly"| queue_reports' in draw_mermaid(services)
    assert "publisher_portal -> queue_reports [label=<directly>" in draw_dot(services)
    assert not re.search(r"topic_\w+ -->\S* queue_reports", draw_mermaid(services))


def test_a_queues_filter_is_at_its_arrows_and_escaped_for_mermaid() -> None:
    [arrow] = [line for line in draw_mermaid([exported.mailer()]).splitlines() if "tenant" in line]

    label = arrow.split('|"')[1].removesuffix('"| queue_mailer')
    assert label.endswith("tenant: #91;#34;acme#34;, #123;#34;prefix#34;: #34;#36;#123;x#125; #37;#123;y#125; …")
    assert set("\"'<>{}|&`").isdisjoint(label.replace("<br/>", ""))


def test_graphviz_gets_labels_that_are_valid_html() -> None:
    policy = FilterPolicy({"tenant": ['<b> & "c"']})
    service = subscribed(Service("a&b", queue=Queue("q", filter_policy=policy)), AccountOpened)

    assert "[label=<a&amp;b>, " in draw_dot([service])
    assert "&lt;b&gt; &amp; " in draw_dot([service])


def test_external_resources_look_different_and_name_account_and_region() -> None:
    picture = draw_mermaid([exported.affiliates(), exported.borrower()])

    assert 'topic_partners{{"partners<br/><small>210987654321, us-east-2</small>"}}:::foreign' in picture
    assert "<small>8 attempts, then their-dead</small>" in picture


def test_many_events_of_one_arrow_are_counted_instead_of_listed() -> None:
    picture = draw_mermaid([subscribed(Service("all"), *(event(number) for number in range(10)))])

    assert '-->|"busy.0<br/>busy.1<br/>busy.2<br/>and 7 more"| queue_all' in picture


def test_long_conditions_are_cut() -> None:
    queue = Queue("q", filter_policy=FilterPolicy({"tenant": ["x" * 100]}))

    assert f"tenant: [&quot;{'x' * 29}…" in draw_dot([subscribed(Service("s", queue=queue), AccountOpened)])


def test_two_names_never_share_an_id() -> None:
    one, other = (subscribed(Service(name), AccountOpened) for name in ("a-b", "a_b"))

    ids = re.findall(r"^ +(queue_a_b\w+)\(", draw_mermaid([one, other]), re.MULTILINE)

    assert len(set(ids)) == 2


@pytest.mark.parametrize("draw", [draw_mermaid, draw_dot])
def test_a_picture_does_not_depend_on_the_order_of_the_targets(draw: Callable[[list[Service]], str]) -> None:
    services = exported.everything()

    assert draw(services) == draw(services[::-1])


def test_graphviz_draws_it() -> None:
    program = shutil.which("dot")
    if program is None:
        pytest.skip("Graphviz is not here: install graphviz to have `dot`")

    drawn = subprocess.run(
        [program, "-Tsvg"], input=draw_dot(exported.everything()), capture_output=True, text=True, check=True
    )

    assert drawn.stderr == ""
    assert drawn.stdout.count('class="node"') == 26
