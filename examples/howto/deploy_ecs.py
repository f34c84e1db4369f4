"""A worker on Amazon ECS, from its declarations and a table in pyproject.toml. The output is how it scales."""

import json
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
services = ["deploy_ecs:billing"]

[tool.smartpipe.deploy]
image = "registry.example.com/shop:1.4.2"
cpu = 0.5
memory = "1Gi"

[tool.smartpipe.deploy.billing]
max_wait_seconds = 60
seconds_per_message = 0.5
min = 0
max = 20
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(PYPROJECT)
        done = subprocess.run(
            [sys.executable, "-m", "smartpipe", "deploy", "export", "--format", "ecs"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    resources = json.loads(done.stdout)["Resources"]
    policy = resources["BillingBacklogPolicy"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    show("scale so that load is", policy["TargetValue"], policy["CustomizedMetricSpecification"]["Metrics"])
    for name in ("Wake", "Sleep"):
        alarm = resources[f"Billing{name}Alarm"]["Properties"]
        words = f"{name.lower()} after {alarm['EvaluationPeriods']} min of {alarm['ComparisonOperator']}"
        show(words, alarm["Threshold"], alarm["Metrics"])


def show(words: str, value: float, metrics: list[dict[str, object]]) -> None:
    print(words, value)
    for one in metrics:
        if "Expression" in one:
            print(f"    {one['Id']:<8} = {one['Expression']}")


if __name__ == "__main__":
    main()
