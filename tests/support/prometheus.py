"""A real Prometheus server, which scrapes workers and evaluates rules every second."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from shutil import which
from typing import TYPE_CHECKING, Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.support.loopback import free_port
from tests.support.waiting import DEADLINE_SECONDS, until_blocking

if TYPE_CHECKING:
    from pathlib import Path

PROMETHEUS = which("prometheus")


class Prometheus:
    """A context manager that starts the server, waits until it is ready, and ends it.

    Args:
        directory: A directory for its configuration and its data.
        rules: The text of a rule file.
        targets: The addresses that it scrapes, as in ``127.0.0.1:8080``.
    """

    def __init__(self, directory: Path, rules: str, *targets: str) -> None:
        (directory / "rules.yml").write_text(rules)
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "workers", "static_configs": [{"targets": list(targets)}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._directory = directory
        self._port = free_port()

    def __enter__(self) -> Self:
        assert PROMETHEUS is not None
        self._log = (self._directory / "prometheus.log").open("w")
        arguments = [
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._process = subprocess.Popen([PROMETHEUS, *arguments], stdout=self._log, stderr=subprocess.STDOUT)
        try:
            until_blocking(self._is_ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)
        self._log.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression."""
        found: list[dict[str, Any]] = self._get(f"/api/v1/query?{urlencode({'query': expression})}")["result"]
        return found

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of an expression; times are in seconds since 1970."""
        arguments = urlencode({"query": expression, "start": start, "end": end, "step": step})
        found: list[dict[str, Any]] = self._get(f"/api/v1/query_range?{arguments}")["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Return the value of an expression that has one sample, None if it has none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire, by name."""
        alerts = self._get("/api/v1/alerts")["alerts"]
        return {one["labels"]["alertname"]: one for one in alerts if one["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """Return the state of every rule."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "prometheus.log").read_text()
        with suppress(URLError), urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=1):
            return True
        return False
