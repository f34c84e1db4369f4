"""AWS Signature Version 4 for the one kind of request that the direct transport makes: POST / with a body. Pure.

Source: AWS General Reference, "Create a signed AWS API request".
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from time import gmtime, strftime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Credentials(Protocol):
        """The frozen credentials of botocore."""

        @property
        def access_key(self) -> str: ...  # noqa: D102
        @property
        def secret_key(self) -> str: ...  # noqa: D102
        @property
        def token(self) -> str | None: ...  # noqa: D102


class Signer:
    """Signs requests to one endpoint. Parts that stay the same for a second, or for a day, are computed once.

    Args:
        host: The value of the Host header.
    """

    def __init__(self, host: str, region: str, service: str) -> None:
        self._host = host
        self._region = region
        self._service = service
        self._second = -1
        self._date = ""
        self._day = ""
        self._scope = ""
        self._hmac_of_day = hmac.new(b"", None, "sha256")
        self._credentials: Credentials | None = None
        self._repeated: dict[tuple[str, bytes], str] = {}

    def sign(
        self, credentials: Credentials, unix_seconds: float, target: str, body: bytes, *, repeats: bool = False
    ) -> str:
        """Return the lines ``X-Amz-Date``, ``X-Amz-Security-Token``, ``X-Amz-Target`` and ``Authorization``.

        Args:
            unix_seconds: By AWS's clock.
            target: Empty for the query protocol, which has none.
            repeats: The same request is likely to be made again in the same second. Its lines are the same then.
        """
        second = int(unix_seconds)
        if second != self._second or credentials is not self._credentials:
            self._begin_second(second, credentials)
        if not repeats:
            return self._compute_lines(credentials, target, body)
        lines = self._repeated.get((target, body))
        if lines is None:
            lines = self._repeated[target, body] = self._compute_lines(credentials, target, body)
        return lines

    def _compute_lines(self, credentials: Credentials, target: str, body: bytes) -> str:
        token = credentials.token
        names, canonical, lines = "host;x-amz-date", f"x-amz-date:{self._date}\n", f"X-Amz-Date: {self._date}\r\n"
        if token:
            names += ";x-amz-security-token"
            canonical += f"x-amz-security-token:{token}\n"
            lines += f"X-Amz-Security-Token: {token}\r\n"
        if target:
            names += ";x-amz-target"
            canonical += f"x-amz-target:{target}\n"
            lines += f"X-Amz-Target: {target}\r\n"
        request = f"POST\n/\n\nhost:{self._host}\n{canonical}\n{names}\n{sha256(body).hexdigest()}"
        text = f"AWS4-HMAC-SHA256\n{self._date}\n{self._scope}\n{sha256(request.encode()).hexdigest()}"
        signature = self._hmac_of_day.copy()
        signature.update(text.encode())
        return (
            f"{lines}Authorization: AWS4-HMAC-SHA256 Credential={credentials.access_key}/{self._scope}, "
            f"SignedHeaders={names}, Signature={signature.hexdigest()}\r\n"
        )

    def _begin_second(self, second: int, credentials: Credentials) -> None:
        self._date = strftime("%Y%m%dT%H%M%SZ", gmtime(second))
        self._second = second
        self._repeated.clear()
        day = self._date[:8]
        if day != self._day or credentials is not self._credentials:
            self._day = day
            self._credentials = credentials
            self._scope = f"{day}/{self._region}/{self._service}/aws4_request"
            key = f"AWS4{credentials.secret_key}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._hmac_of_day = hmac.new(key, None, "sha256")  # a copy of it takes half as long as a new one
