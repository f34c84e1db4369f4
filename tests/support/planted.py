"""A secret in every setting that can contain one. No output of a command, log or error may contain it."""

from __future__ import annotations

PLANTED = "planted-s3cr3t-in-a-setting"


def refuse_planted(*texts: str) -> None:
    """Raise AssertionError, without the text, if one of *texts* contains the secret."""
    if any(PLANTED in text for text in texts):
        raise AssertionError("a secret of the settings was printed")
