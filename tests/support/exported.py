"""Services that use every feature of an export: FIFO and standard, filters, sizes, keys, direct queues."""

from __future__ import annotations

from smartpipe import Event, FilterPolicy, Queue, Service, Topic

accounts = Topic("accounts", tags={"team": "identity"})
payments = Topic("payments", fifo=True)
films = Topic("films", limit_bytes=1_048_576)
trades = Topic("trades", fifo=True, high_throughput=True)
secrets = Topic("secrets", kms_key="alias/smartpipe")
partners = Topic(arn="arn:aws:sns:us-east-2:210987654321:partners")


class AccountOpened(Event, topic=accounts, type="account.opened", version="1.0"):
    """A person opened an account."""

    name: str
    country: str = "ch"


class AccountClosed(Event, topic=accounts, type="account.closed", version="2.0"):
    name: str


class PaymentMade(Event, topic=payments, type="payment.made", version="1.0", key="account"):
    account: str


class TradeMade(Event, topic=trades, type="trade.made", version="1.0", key="account"):
    account: str


class FilmAdded(Event, topic=films, type="film.added", version="1.0"):
    title: str


class PartnerJoined(Event, topic=partners, type="partner.joined", version="1.0"):
    name: str


class SecretTold(Event, topic=secrets, type="secret.told", version="1.0"):
    pass


def numbered(number: int) -> type[Event]:
    """Return an event on its own topic."""

    class Numbered(Event, topic=Topic(f"many-{number}"), type=f"many.{number}", version="1.0"):
        pass

    return Numbered


async def handle(_: Event) -> None: ...


def subscribed(service: Service, *events: type[Event], queue: Queue | None = None) -> Service:
    for event in events:
        service.subscribe(event, queue=queue)(handle)
    return service


def portal() -> Service:
    """Return a service that publishes and handles no event."""
    return Service("portal", publishes=[AccountOpened, AccountClosed, PaymentMade, Queue("reports", direct=True)])


def mailer() -> Service:
    acme = FilterPolicy({"tenant": ["acme", {"prefix": "${x} %{y} <&>\"'"}]})
    queue = Queue("mailer", delay_seconds=5, filter_policy=acme, tags={"team": "post"})
    service = Service("mailer", queue=queue, publishes=[AccountClosed])
    return subscribed(service, AccountOpened, AccountClosed)


def ledger() -> Service:
    swiss = FilterPolicy({"data": {"account": [{"prefix": "ch"}]}}, scope="MessageBody")
    service = Service("ledger", queue=Queue("ledger", fifo=True, high_throughput=True, filter_policy=swiss))
    return subscribed(service, PaymentMade)


def archive() -> Service:
    service = Service("archive", queue=Queue("archive", retention_seconds=86_400, visibility_timeout_seconds=120))
    subscribed(service, AccountOpened, PaymentMade)
    return subscribed(service, AccountOpened, queue=Queue("reports", direct=True))


def exchange() -> Service:
    return subscribed(Service("exchange", queue=Queue("exchange", fifo=True)), TradeMade)


def cinema() -> Service:
    return subscribed(Service("cinema"), FilmAdded)


def affiliates() -> Service:
    return subscribed(Service("affiliates"), PartnerJoined)


def vault() -> Service:
    queue = Queue("vault", kms_key="1234abcd-12ab-34cd-56ef-1234567890ab")
    return subscribed(Service("vault", queue=queue, publishes=[SecretTold]), SecretTold)


def borrower() -> Service:
    """Handles events from the queue of another team."""
    theirs = Queue("arn:aws:sqs:eu-west-1:210987654321:theirs", existing=True, dead_letter="their-dead")
    return subscribed(Service("borrower", queue=theirs), AccountOpened)


def services() -> list[Service]:
    """Return services that all brokers, CloudFormation and Terraform support."""
    return [portal(), mailer(), ledger(), archive()]


def everything() -> list[Service]:
    """Return these services, and others that no emulator supports."""
    return [*services(), cinema(), exchange(), affiliates(), vault(), borrower()]
