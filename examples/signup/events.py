"""The contract: the events that producers and consumers agree on."""

from uuid import UUID

from pydantic import EmailStr

from smartpipe import Event, Topic

users = Topic("users")


class UserSignedUp(Event, topic=users, type="user.signed_up", version="1.0"):
    """A person finished the sign-up form."""

    user_id: UUID
    name: str
    email: EmailStr
