"""The layer of ``smartpipe doctor --live``: rules over an AWS account, which it only reads."""
