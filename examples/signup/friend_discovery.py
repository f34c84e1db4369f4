"""The friend-discovery service: finds people that a new user may know. Its sync handler runs in a thread."""

from signup.events import UserSignedUp
from smartpipe import Service

service = Service("friend-discovery")
by_domain: dict[str, list[str]] = {}


@service.subscribe(UserSignedUp)
def suggest_friends(event: UserSignedUp) -> None:
    domain = event.email.partition("@")[2]
    by_domain.setdefault(domain, []).append(event.name)
