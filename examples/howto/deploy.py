"""The manifests of a worker, from its declarations and a table in pyproject.toml. The output has the last of them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from smartpipe import Event, Service, Topic


class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str


billing = Service("billing")


@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...


PYPROJECT = """
[tool.smartpipe]
services = ["deploy:billing"]

[tool.smartpipe.deploy]
image = "registry.example.com/shop:1.4.2"
cpu = 0.5
memory = "1Gi"

[tool.smartpipe.deploy.billing]
max_wait_seconds = 60
seconds_per_message = 0.5
max = 20
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(PYPROJECT)
        done = subprocess.run(
            [sys.executable, "-m", "smartpipe", "deploy", "export", "--format", "kubernetes"],
            cwd=directory,
            env={**os.environ, "AWS_REGION": "eu-west-1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    *_, scaler = done.stdout.split("---\n")
    print(scaler, end="")


if __name__ == "__main__":
    main()
