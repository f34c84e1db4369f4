"""Tests of a service: three in memory on virtual time, and one on a real server."""

import asyncio

from smartpipe import Delivery, Event, Publisher, RetryPolicy, Service, Topic
from smartpipe.testing import MemoryBroker, provision, working

users = Topic("users")


class UserSignedUp(Event, topic=users, type="user.signed_up", version="1.0"):
    email: str


class WelcomeSent(Event, topic=users, type="user.welcomed", version="1.0"):
    email: str


class MailServer:
    def __init__(self, *, up: bool) -> None:
        self.up = up


def make_service(server: MailServer) -> Service:
    service = Service("mailer", retry=RetryPolicy(attempts=5, base_seconds=60, max_seconds=600))

    @service.subscribe(UserSignedUp)
    async def send_welcome(event: UserSignedUp, delivery: Delivery) -> None:
        if not server.up:
            raise ConnectionError("the mail server is down")
        await delivery.publish(WelcomeSent(email=event.email))

    return service


async def test_a_welcome_is_sent_and_published():
    async with MemoryBroker(make_service(MailServer(up=True))) as broker:
        await broker.publish(UserSignedUp(email="ada@example.com"))
        await broker.drain()

        broker.assert_published(WelcomeSent, email="ada@example.com", times=1)
        broker.assert_nothing_dead_lettered()


async def test_the_event_is_dead_lettered_after_five_attempts():
    async with MemoryBroker(make_service(MailServer(up=False))) as broker:
        await broker.publish(UserSignedUp(email="ada@example.com"))
        await broker.drain()

        assert len(broker.retried(UserSignedUp)) == 4
        assert all(retried.after_seconds <= 480 for retried in broker.retried())
        dead = broker.assert_dead_lettered(UserSignedUp, kind="retries-exhausted")
        assert dead.reason == "the mail server is down"


async def test_no_event_is_lost_with_duplicates_and_disorder():
    service = make_service(MailServer(up=True))
    async with MemoryBroker(service, duplicate_share=0.2, shuffle=True, seed=1) as broker:
        for number in range(50):
            await broker.publish(UserSignedUp(email=f"{number}@example.com"))
        await broker.drain()

        assert {event.email for event in broker.published(WelcomeSent)} == {f"{n}@example.com" for n in range(50)}


async def test_the_service_runs_on_a_real_server(smartpipe_moto):  # a moto server; needs smartpipe[moto]
    service, arrived = make_service(MailServer(up=True)), asyncio.Event()

    @service.subscribe(WelcomeSent)
    async def set_arrived(event: WelcomeSent) -> None:
        arrived.set()

    await provision(service)
    async with working(service), Publisher("test") as publisher:
        await publisher.publish(UserSignedUp(email="ada@example.com"))
        await asyncio.wait_for(arrived.wait(), 30)
