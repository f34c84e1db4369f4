"""Physical names and ARNs of topics and queues, and names of handler functions. Pure."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_APPLICATION = "smartpipe"


class Naming(NamedTuple):
    """The parts of an environment's physical names, ARNs and tags.

    A name that is an ARN stays unchanged, because it names an external resource.

    Args:
        partition: ``aws``, ``aws-cn`` or ``aws-us-gov``.
        account_id: Twelve digits.
        prefix: Goes before every name, as in ``staging-``.
        application: The application that owns the resources; it is written into a tag.
    """

    partition: str
    region: str
    account_id: str
    prefix: str = ""
    application: str = DEFAULT_APPLICATION

    @property
    def is_portable(self) -> bool:
        """Whether the account is a placeholder, because a template may be deployed in any account."""
        return not self.account_id.isdigit()

    def physical_name(self, name: str) -> str:
        """Return the name on AWS of the topic or queue declared as *name*."""
        return physical_name(self.prefix, name)

    def topic_arn(self, name: str) -> str:
        """Return the ARN of the topic declared as *name*."""
        return self._arn("sns", name)

    def queue_arn(self, name: str) -> str:
        """Return the ARN of the queue declared as *name*."""
        return self._arn("sqs", name)

    def table_arn(self, name: str) -> str:
        """Return the ARN of the DynamoDB table called *name*. It gets no prefix: the keys in it have one."""
        return f"arn:{self.partition}:dynamodb:{self.region}:{self.account_id}:table/{name}"

    def bucket_arn(self, name: str) -> str:
        """Return the ARN of the S3 bucket called *name*. It gets no prefix: bucket names are global."""
        return f"arn:{self.partition}:s3:::{name}"

    def _arn(self, service: str, name: str) -> str:
        if is_arn(name):
            return name
        return f"arn:{self.partition}:{service}:{self.region}:{self.account_id}:{self.physical_name(name)}"


def physical_name(prefix: str, name: str) -> str:
    """Return the name on AWS of the topic or queue declared as *name*, which may be an ARN."""
    return name_in(name) if is_arn(name) else prefix + name


def is_arn(name: str) -> bool:
    """Return whether *name* is an ARN. Names of topics and queues have no colon."""
    return name.startswith("arn:")


def name_in(arn: str) -> str:
    """Return the physical name at the end of *arn*."""
    return arn.rpartition(":")[2].removeprefix("table/")


def shorten_names(names: Iterable[str]) -> dict[str, str]:
    """Return a short name for each: that at the end of an ARN, without the account, unless two of them share it."""
    known = list(names)
    counts = Counter(map(name_in, known))
    return {name: name_in(name) if counts[name_in(name)] == 1 else name for name in known}


def queue_arn_at(url: str, like: str) -> str:
    """Return the ARN of the queue at *url*, in the partition and region of the queue ARN *like*."""
    account_id, name = url.split("/")[-2:]
    return f"{like.rsplit(':', 2)[0]}:{account_id}:{name}"


def service_in(arn: str) -> str:
    """Return the service in *arn*: ``sns`` or ``sqs``."""
    return arn.split(":")[2]


def partition_in(arn: str) -> str:
    """Return the partition in *arn*: ``aws``, ``aws-cn`` or another."""
    return arn.split(":")[1]


def region_in(arn: str) -> str:
    """Return the region in *arn*."""
    return arn.split(":")[3]


def account_in(arn: str) -> str:
    """Return the account in *arn*."""
    return arn.split(":")[4]


def name_of(function: Callable[..., Any]) -> str:
    """Return the module and qualified name of *function*, or of the function inside a ``functools.partial``.

    A callable object has the name of its class.
    """
    function = without_partials(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', 'builtins')}.{named.__qualname__}"  # a method of dict has no module


def without_partials(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a chain of ``functools.partial`` finally calls."""
    while isinstance(function, partial):
        function = function.func
    return function
