"""An AwsSession whose clients give scripted answers, for tests of the topology without a broker."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from smartpipe.names import Naming, name_in

REGION, ACCOUNT = "eu-west-1", "123456789012"
NAMING = Naming("aws", REGION, ACCOUNT, "staging-", "shop")
TOPIC, OTHER_TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:users", f"arn:aws:sns:{REGION}:{ACCOUNT}:orders"
FAR_TOPIC = "arn:aws:sns:us-east-1:999999999999:theirs"
QUEUE, DEAD = f"arn:aws:sqs:{REGION}:{ACCOUNT}:mailer", f"arn:aws:sqs:{REGION}:{ACCOUNT}:mailer-dlq"
URL = f"https://sqs/{ACCOUNT}/mailer"
SUBSCRIPTION = f"{TOPIC}:1"
LISTED = {"TopicArn": TOPIC, "Endpoint": QUEUE, "SubscriptionArn": SUBSCRIPTION}
TAG_LIST = [{"Key": "a", "Value": "1"}]


def refusal(code: str, message: str = "no", status: int = 400) -> ClientError:
    """Return the error of a call that AWS refuses."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "Call")  # type: ignore[arg-type]


class ScriptedAws:
    """A session, its addresses and its clients.

    ``answers`` has the answer of each method: a response, an error to raise, a function of the arguments, or a list of
    these, one for each call. Without one, the response is empty. ``calls`` has the method and the arguments of each
    call that was made.
    """

    def __init__(self, region: str = REGION, **answers: Any) -> None:
        self.region = region
        self.addresses = self
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.clients: list[tuple[str, str | None]] = []
        self.forgotten: list[str] = []

    async def naming(self) -> Naming:
        return NAMING._replace(region=self.region)

    async def queue_url(self, arn: str) -> str:
        self.calls.append(("queue_url", {"arn": arn}))
        answer = self._next("queue_url", {"arn": arn})
        return answer or f"https://sqs/{ACCOUNT}/{name_in(arn)}"

    def forget_queue(self, arn: str) -> None:
        self.forgotten.append(arn)

    async def client(self, service: str, *, region: str | None = None) -> Any:
        self.clients.append((service, region))
        return _Client(self)

    def made(self, method: str) -> list[dict[str, Any]]:
        """Return the arguments of each call of *method*."""
        return [arguments for name, arguments in self.calls if name == method]

    @property
    def methods(self) -> list[str]:
        """The methods that were called, in order."""
        return [method for method, _ in self.calls]

    def _next(self, method: str, arguments: dict[str, Any]) -> Any:
        answer = self.answers.get(method, {})
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(**arguments) if callable(answer) else answer


class _Client:
    def __init__(self, aws: ScriptedAws) -> None:
        self._aws = aws

    def __getattr__(self, method: str) -> Any:
        async def call(**arguments: Any) -> Any:
            self._aws.calls.append((method, arguments))
            return self._aws._next(method, arguments)

        return call


def aws_of(**answers: Any) -> Any:
    """Return a ScriptedAws with these answers, for parameters of the type AwsSession."""
    return ScriptedAws(**answers)
