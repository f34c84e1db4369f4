"""The secret in the settings of every test. No command, log or error of the suite may print it."""

from __future__ import annotations

PLANTED = "planted-s3cr3t-in-a-setting"


def refuse_planted(*texts: str) -> None:
    """Raise AssertionError, without the text, if one of *texts* contains the secret."""
    if any(PLANTED in text for text in texts):
        raise AssertionError("a secret of the settings was printed")
