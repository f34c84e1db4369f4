"""Compose files of services: one for a laptop, with a broker, and one for AWS, which Docker Swarm takes too. Pure.

Sources: Compose Specification; docker/cli 28, ``cli/compose``. Swarm refuses the long form of ``depends_on`` and does
not read ``.env``. It ignores the short form of ``tmpfs``, so the writable /tmp is a volume.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from smartpipe.deploy.kubernetes import USER_ID, name_workloads
from smartpipe.deploy.yaml import write_documents
from smartpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smartpipe.deploy.workloads import Workload

LOCAL_FILE = "compose.yaml"
AWS_FILE = "compose.aws.yaml"
BROKER = "smartpipe-broker"
TOPOLOGY = "smartpipe-topology"
HEALTH_INTERVAL_SECONDS = 15
MIN_HEALTH_RETRIES = 4
BROKER_PORT = 4566
BROKER_HEALTH_PATH = "/_ministack/health"
BROKER_URL = f"http://{BROKER}:{BROKER_PORT}"
LOCAL_STORE = "dynamodb://smartpipe-claims"
"""The idempotency store of the file for a laptop; the broker has DynamoDB, and ``topology apply`` creates the table."""
WITH_DEVELOPMENT_PACKAGES = {"UV_NO_DEV": "0"}
"""The build argument of the Dockerfile with which the image contains the packages of the group ``dev``."""
_SETTINGS_OF_THE_TOPOLOGY = ("SMARTPIPE_PREFIX", "SMARTPIPE_APPLICATION", "SMARTPIPE_CLAIM_CHECK_")
_ONLY_ON_AWS = frozenset({"SMARTPIPE_ACCOUNT_ID"})
_BUCKETS = frozenset({"SMARTPIPE_CLAIM_CHECK_URL", "SMARTPIPE_CLAIM_CHECK_READ"})
_OWNER = re.compile(r"\?owner=[0-9]{12}")
_SHORT_POLLS = {"SMARTPIPE_WAIT_SECONDS": "1"}
"""An idle worker ends within a second, because its drain waits for the open receive call."""
_REFERENCES_ON_A_LAPTOP = {"SMARTPIPE_IDEMPOTENCY_URL": f"${{SMARTPIPE_IDEMPOTENCY_URL:-{LOCAL_STORE}}}"}
_TMP = {"type": "tmpfs", "target": "/tmp"}  # noqa: S108 - in the container
_LOCAL_DEPLOY = {"restart_policy": {"condition": "any", "delay": "5s"}}
"""A worker exits with 1 if its queue does not exist. Compose obeys this policy without Swarm, too."""
_SWARM_DEPLOY = {
    "update_config": {"parallelism": 1, "order": "start-first", "failure_action": "rollback", "monitor": "60s"},
    "rollback_config": {"parallelism": 1, "order": "start-first"},
    **_LOCAL_DEPLOY,
}
_MEBIBYTE = 2**20


class Contents(NamedTuple):
    """The parts of the project that both files describe.

    Args:
        targets: All services, for ``topology apply``.
        producers: The names of services without handlers. The header says that they are left out.
    """

    workloads: Sequence[Workload]
    targets: Sequence[str]
    producers: Sequence[str]


def write_local(contents: Contents, variables: Mapping[str, str]) -> str:
    """Return the file for a laptop, which builds the image and starts the broker first.

    Args:
        variables: Those that lead every AWS client to the broker at BROKER_URL.

    Raises:
        ConfigError: A service has the name of the broker or of the topology.
    """
    names = _name_services(contents.workloads)
    workers = {
        names[one.name]: {
            **_describe(one, _build_local_environment(one, variables), _LOCAL_DEPLOY),
            "image": _escape(_strip_digest(one.options.image)),
            "build": ".",
            "depends_on": {TOPOLOGY: {"condition": "service_completed_successfully"}},
        }
        for one in contents.workloads
    }
    first = contents.workloads[0]
    services = {BROKER: _broker(first), TOPOLOGY: _topology(first, contents, variables), **workers}
    header = [
        f"Runs {', '.join(names.values())} on this machine, with a broker in memory: docker compose up --build",
        *_describe_origin(contents),
        "Keep your own changes in compose.override.yaml, because the next export replaces this file.",
    ]
    return write_documents(header, [{"services": services}])


def write_aws(contents: Contents) -> str:
    """Return the file for AWS, without the broker.

    Raises:
        ConfigError: A service has the name of the broker or of the topology.
    """
    names = _name_services(contents.workloads)
    services = {
        names[one.name]: _describe(one, _build_aws_environment(one), _SWARM_DEPLOY) for one in contents.workloads
    }
    header = [
        f"Runs {', '.join(names.values())} on AWS. First run `smartpipe topology apply`, then one of these:",
        f"  docker compose -f {AWS_FILE} up -d",
        f"  docker stack deploy -c {AWS_FILE} NAME",
        *_describe_origin(contents),
        "Keep your own changes in a second file, because the next export replaces this one.",
    ]
    return write_documents(header, [{"services": services}])


def _describe_origin(contents: Contents) -> list[str]:
    lines = ["Written by `smartpipe deploy export --format compose`; run it again when services or settings change."]
    if contents.producers:
        lines.append(f"Without {', '.join(contents.producers)}: no worker runs a service without handlers.")
    return lines


def _name_services(workloads: Sequence[Workload]) -> dict[str, str]:
    names = name_workloads(workloads)
    for name, one in names.items():
        if one in (BROKER, TOPOLOGY):
            raise ConfigError(f"service {name!r}: the compose file has its own service called {one}; rename yours")
    return names


def _describe(one: Workload, environment: Mapping[str, str], deploy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a service that both Compose and Swarm take."""
    return {
        "image": _escape(one.options.image),
        "entrypoint": [one.command[0]],
        "command": [_escape(word) for word in one.command[1:]],
        "environment": dict(environment),
        **_harden(),
        "stop_signal": "SIGTERM",
        "stop_grace_period": f"{one.grace_seconds}s",
        "healthcheck": {
            "test": ["CMD", "smartpipe", "health"],
            "interval": f"{HEALTH_INTERVAL_SECONDS}s",
            "timeout": "10s",
            "retries": one.count_health_failures(HEALTH_INTERVAL_SECONDS, MIN_HEALTH_RETRIES),
            "start_period": "60s",
        },
        "deploy": {
            "replicas": max(1, one.options.min),
            **deploy,
            "resources": _size(one),
        },
    }


def _harden() -> dict[str, Any]:
    """Return the settings of every container: a plain user without rights, who can write only to /tmp."""
    return {
        "user": f"{USER_ID}:{USER_ID}",
        "init": True,
        "read_only": True,
        "volumes": [_TMP],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _size(one: Workload) -> dict[str, Any]:
    """Return the same sizes as in Kubernetes: a limit of memory, and no limit of CPU, which would only slow it down."""
    memory = f"{one.options.memory_bytes // _MEBIBYTE}M"
    return {"limits": {"memory": memory}, "reservations": {"cpus": f"{one.options.cpu:g}", "memory": memory}}


def _build_local_environment(one: Workload, variables: Mapping[str, str]) -> dict[str, str]:
    polls = _SHORT_POLLS if one.queues else {}
    literal = {"SMARTPIPE_LOG_FORMAT": "text", **polls, **_remove_accounts(one.environment), **variables}
    return _sort(literal, _refer_to_secrets(one, _REFERENCES_ON_A_LAPTOP))


def _remove_accounts(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without the accounts of AWS: the broker has one account, which owns all buckets."""
    own = {name: value for name, value in environment.items() if name not in _ONLY_ON_AWS}
    return {name: _OWNER.sub("", value) if name in _BUCKETS else value for name, value in own.items()}


def _build_aws_environment(one: Workload) -> dict[str, str]:
    return _sort(one.environment, _refer_to_secrets(one, {}))


def _refer_to_secrets(one: Workload, references: Mapping[str, str]) -> dict[str, str]:
    """Return references to the variables of your shell, which Compose also reads from ``.env``."""
    return {name: references.get(name, f"${{{name}:?set it in your shell or in .env}}") for name in one.secrets}


def _sort(literal: Mapping[str, str], references: Mapping[str, str]) -> dict[str, str]:
    escaped = {name: _escape(value) for name, value in literal.items()}
    return dict(sorted({**escaped, **references}.items()))


def _escape(text: str) -> str:
    """Return the text so that Compose does not look for variables in it."""
    return text.replace("$", "$$")


def _broker(first: Workload) -> dict[str, Any]:
    probe = (
        f"import urllib.request as http; http.urlopen('http://127.0.0.1:{BROKER_PORT}{BROKER_HEALTH_PATH}', timeout=2)"
    )
    return {
        "image": _escape(_name_broker_image(_strip_digest(first.options.image))),
        "build": {"context": ".", "args": WITH_DEVELOPMENT_PACKAGES},
        "entrypoint": ["smartpipe"],
        "command": ["local", "--host", "0.0.0.0", "--port", str(BROKER_PORT)],  # noqa: S104 - in its network only
        **_harden(),
        "ports": [f"127.0.0.1:${{BROKER_PORT:-{BROKER_PORT}}}:{BROKER_PORT}"],
        "healthcheck": {
            "test": ["CMD", "python", "-c", probe],
            "interval": "2s",
            "timeout": "5s",
            "retries": 30,
        },
    }


def _strip_digest(image: str) -> str:
    """Return the name and the tag: an image that Docker builds cannot have a digest yet."""
    return image.partition("@")[0]


def _name_broker_image(image: str) -> str:
    """Return a name beside *image* in the same registry, with its tag."""
    path, slash, last = image.rpartition("/")
    repository, colon, tag = last.partition(":")
    return f"{path}{slash}{repository}-broker{colon}{tag}"


def _topology(first: Workload, contents: Contents, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the container that creates topics and queues. It ends before the workers start, and is not restarted."""
    workloads = contents.workloads
    settings = {
        name: value
        for one in workloads
        for name, value in _remove_accounts(one.environment).items()
        if name.startswith(_SETTINGS_OF_THE_TOPOLOGY)
    }
    stores = {name for one in workloads for name in one.secrets if name in _REFERENCES_ON_A_LAPTOP}
    return {
        "image": _escape(_strip_digest(first.options.image)),
        "build": ".",
        "entrypoint": ["smartpipe"],
        "command": ["topology", "apply", "--yes", *(_escape(one) for one in contents.targets)],
        "environment": _sort({**settings, **variables}, {name: _REFERENCES_ON_A_LAPTOP[name] for name in stores}),
        **_harden(),
        "depends_on": {BROKER: {"condition": "service_healthy"}},
        "restart": "no",
    }
