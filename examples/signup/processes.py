"""The processes of the demo: start them with environment variables, read their logs, and stop them with SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

EXAMPLES = Path(__file__).parent.parent


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HttpService:
    """An HTTP service in its own process."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{(port := find_free_port())}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=EXAMPLES, env={**os.environ, **environment, "PORT": str(port)}
        )

    def wait_until_ready(self, deadline_seconds: float = 15) -> None:
        deadline = time.monotonic() + deadline_seconds
        while time.monotonic() < deadline:
            try:
                with urlopen(self.url + "/readyz", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"{self.url} did not become ready")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Worker:
    """``smartpipe worker TARGET`` in its own process. The demo reads its results from its log."""

    def __init__(self, target: str, environment: dict[str, str]) -> None:
        self._target = target
        self._environment = {
            **os.environ,
            **environment,
            "SMARTPIPE_PORT": "0",
            "SMARTPIPE_WAIT_SECONDS": "2",
            "SMARTPIPE_LOG_LEVEL": "debug",
            "SMARTPIPE_LOG_FORMAT": "json",
        }
        self.exit_codes: list[int] = []
        self.counts: Counter[str] = Counter()
        self.latency_seconds: dict[str, float] = {}
        self.ready = False
        self.start()

    def start(self) -> None:
        self.ready = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "smartpipe", "worker", self._target],
            cwd=EXAMPLES,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Send SIGTERM, and wait for the drain."""
        self._process.send_signal(signal.SIGTERM)
        self.exit_codes.append(self._process.wait(30))
        self._reader.join(5)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            record: dict[str, Any] = json.loads(line)
            message = str(record["message"])
            if message.startswith("ready"):
                self.ready = True
            elif message == "Handled":
                self.counts["handled"] += 1
                self.latency_seconds[record["event_id"]] = record["age_seconds"]
            elif message.startswith("Handler failed"):
                self.counts["retried"] += 1
            elif message.startswith("Dead-lettered"):
                self.counts["dead-lettered"] += 1
            elif message.startswith("stopped"):
                self.counts["delivered"] += record.get("received", 0)
