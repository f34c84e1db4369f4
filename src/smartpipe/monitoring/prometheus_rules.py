"""Write alert rules as a rule file of Prometheus. Pure.

Source: Prometheus, "Alerting rules" and "Template reference". JSON's texts are also YAML's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from smartpipe.monitoring.rules import build_rules, explain_left_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from smartpipe.monitoring.rules import AlertOptions, Rule
    from smartpipe.topology.derive import Declares


def write_rule_file(services: Sequence[Declares], *, application: str, options: AlertOptions) -> str:
    """Return the text of the file, in YAML.

    Raises:
        ConfigError: No service has a handler.
    """
    rules = build_rules(services, options)
    lines = [
        "# Alerts for the services " + ", ".join(sorted({one.name for one in services})) + ".",
        "# Written by `smartpipe telemetry alerts --format prometheus`; run it again when services change.",
        *(f"# {name} is left out, because {reason}." for name, reason in explain_left_out(options).items()),
        "groups:",
        f"- name: {_quote(f'smartpipe {application}')}",
        "  rules:",
    ]
    for rule in rules:
        lines += _lines_of(rule, options)
    return "\n".join(lines) + "\n"


def _lines_of(rule: Rule, options: AlertOptions) -> Iterator[str]:
    yield f"  - alert: {rule.name}"
    yield "    expr: |-"
    yield from (f"      {line}" for line in rule.expression.splitlines())
    if rule.wait:
        yield f"    for: {rule.wait}"
    yield "    labels:"
    labels = {name: _escape_template(value) for name, value in sorted(options.labels.items())}
    yield from _mapping({"severity": rule.severity, **labels})
    yield "    annotations:"
    url = _escape_template(options.url_of(rule.page))
    yield from _mapping({"summary": rule.summary, "description": rule.description, "runbook_url": url})


def _mapping(values: Mapping[str, str]) -> Iterator[str]:
    yield from (f"      {name}: {_quote(value)}" for name, value in values.items())


def _escape_template(text: str) -> str:
    """Return *text* so that Prometheus, which expands templates in labels and annotations, yields it unchanged."""
    return text.replace("{{", '{{"{{"}}')


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
