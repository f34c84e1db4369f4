"""The jobs of the exported GitHub workflow: when each runs, its permissions, and its commands of smartpipe."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

SERVICE = """
from smartpipe import Event, Service, Topic

class OrderPlaced(Event, topic=Topic("orders"), type="order.placed", version="1.0"):
    order_id: str

billing = Service("billing")

@billing.subscribe(OrderPlaced)
async def charge(event: OrderPlaced) -> None: ...
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "shop.py").write_text(SERVICE)
        done = subprocess.run(
            [sys.executable, "-m", "smartpipe", "deploy", "export", "--format", "github", "shop:billing"],
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    for name, job in yaml.safe_load(done.stdout)["jobs"].items():
        print(name, job["permissions"])
        for step in job["steps"]:
            for command in re.findall(r"--no-sync (smartpipe( [a-z]+)+)", step.get("run", "")):
                print(f"  {command[0]}")


if __name__ == "__main__":
    main()
