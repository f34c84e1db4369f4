"""The Grafana dashboards: their shape, their queries, and their place on the grid."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest

from smartpipe import ConfigError, Queue, Service
from smartpipe.monitoring.dashboards import FLEET, SERVICE, build_dashboards
from tests.support import exported
from tests.support.dashboards import expressions_of, panels_of
from tests.support.metrics import find_unknown_names, read_existing_metrics, samples_of
from tests.support.processes import ROOT

NOT_SHOWN = {
    "smartpipe_backlog_seconds": "it is what one host needs alone, and the panels show the backlog for all hosts",
    "smartpipe_messages_received_total": "the deliveries by outcome are the same messages, a moment later",
    "smartpipe_outbox_published_total": "the publisher of the relay reports its events by result",
    "smartpipe_outbox_parked": "it should always be 0, and an alert watches it",
    "smartpipe_outbox_backlog_age_seconds": "the alert for the lag includes it",
    "smartpipe_task_protected": "only workers that protect their task on ECS report it",
    "smartpipe_task_protection_failures_total": "only workers that protect their task on ECS report it",
}
"""Metrics without a panel, with the reason."""


def dashboards(**labels: str) -> dict[str, dict[str, Any]]:
    return build_dashboards(exported.everything(), application="shop", labels=labels)


@pytest.mark.parametrize("name", [FLEET, SERVICE])
async def test_every_query_parses_and_names_only_metrics_and_labels_that_exist(name: str) -> None:
    known = samples_of(await read_existing_metrics())

    for place, expression in expressions_of(dashboards(env="prod")[name]):
        assert find_unknown_names(expression, known) == [], place


async def test_every_metric_has_a_panel() -> None:
    text = json.dumps(dashboards())

    for name in await read_existing_metrics():
        assert name in text or name in NOT_SHOWN, name


@pytest.mark.parametrize("name", [FLEET, SERVICE])
def test_a_dashboard_has_the_shape_that_grafana_imports(name: str) -> None:
    dashboard = dashboards()[name]

    assert dashboard["schemaVersion"] >= 41
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])
    assert "id" not in dashboard, "an id of one Grafana would replace another dashboard there"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    for panel in panels_of(dashboard):
        assert panel["title"]
        if panel["type"] == "text":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [one["refId"] for one in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
        if panel["type"] == "heatmap":
            [target] = panel["targets"]
            assert (target["format"], target["legendFormat"]) == ("heatmap", "{{le}}")
            assert "by (le)" in target["expr"]


@pytest.mark.parametrize("name", [FLEET, SERVICE])
def test_panels_are_on_the_grid_and_do_not_overlap(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboards()[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@pytest.mark.parametrize("name", [FLEET, SERVICE])
def test_queries_use_only_variables_that_the_dashboard_has(name: str) -> None:
    dashboard = dashboards()[name]
    declared = {one["name"] for one in dashboard["templating"]["list"]}

    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}

    assert used == declared


def test_the_fleet_names_every_declared_service_and_queue() -> None:
    fleet = dashboards()[FLEET]
    [text] = [panel["options"]["content"] for panel in panels_of(fleet) if panel["type"] == "text"]
    [service] = [one for one in fleet["templating"]["list"] if one["name"] == "service"]

    for one in exported.everything():
        assert f"| {one.name} |" in text
        assert one.name in service["allValue"]
        assert all(f"| {binding.queue.name} |" in text for binding in one.bindings)


def test_the_name_of_a_service_may_have_characters_of_regular_expressions() -> None:
    service = exported.subscribed(Service("shop.eu/mail+more", queue=Queue("mail")), exported.AccountOpened)
    fleet = build_dashboards([service], application="shop", labels={})[FLEET]
    [variable] = [one for one in fleet["templating"]["list"] if one["name"] == "service"]

    selector: Any = promql_parser.parse(f'up{{service=~"{variable["allValue"]}"}}')

    [matcher] = selector.matchers.matchers
    assert re.fullmatch(matcher.value, "shop.eu/mail+more")
    assert not re.fullmatch(matcher.value, "shop-eu/mail+more")
    for _, expression in expressions_of(fleet, service=variable["allValue"]):
        promql_parser.parse(expression)


def test_dashboards_do_not_depend_on_the_order_of_the_targets() -> None:
    services = exported.everything()

    texts = {json.dumps(build_dashboards(found, application="shop", labels={})) for found in (services, services[::-1])}

    assert len(texts) == 1


def test_each_environment_has_dashboards_of_its_own() -> None:
    uids = {one["uid"] for labels in ({}, {"env": "prod"}, {"env": "test"}) for one in dashboards(**labels).values()}

    assert len(uids) == 6
    assert all('env="prod"' in text for place, text in expressions_of(dashboards(env="prod")[SERVICE]))


def test_the_pages_name_only_panels_that_exist() -> None:
    titles = {panel["title"] for dashboard in dashboards().values() for panel in panels_of(dashboard)}
    questions = (ROOT / "docs" / "observability.md").read_text().partition("## Ten questions")[2]
    pages = [(path.name, path.read_text()) for path in (ROOT / "docs" / "runbooks").glob("[a-z]*.md")]

    for name, text in [("observability.md", questions), *pages]:
        named = set(re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", " ".join(text.split())))
        assert named <= titles, name
    assert len(re.findall(r"^\| \d+\. ", questions, re.MULTILINE)) == 10


def test_services_without_handlers_have_no_dashboards() -> None:
    with pytest.raises(ConfigError, match=r"no service has handlers \(portal\)"):
        build_dashboards([exported.portal()], application="shop", labels={})
