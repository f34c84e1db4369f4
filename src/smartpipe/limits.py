"""Limits of SQS and SNS, each written once.

Sources: Amazon SQS Developer Guide, "Amazon SQS message quotas", "Amazon SQS queue quotas"; Amazon SNS, "Quotas"; API
references of SendMessage, ReceiveMessage, ChangeMessageVisibility and Publish.
"""

from __future__ import annotations

import re

MAX_BATCH_ENTRIES = 10
"""Entries in a batch request, and messages in one receive."""
MAX_WAIT_SECONDS = 20
"""ReceiveMessage: the longest WaitTimeSeconds."""
MAX_VISIBILITY_SECONDS = 43_200
"""A message can stay invisible for 12 hours after it was received."""
MAX_DELAY_SECONDS = 900
"""The longest DelaySeconds of a queue or of one message."""
MAX_RECEIVES = 1_000
"""The highest maxReceiveCount of a redrive policy."""
MIN_MESSAGE_LIMIT_BYTES = 1_024
"""The lowest MaximumMessageSize."""
MAX_MESSAGE_BYTES = 1_048_576
"""The highest MaximumMessageSize, which is the default of a queue, and the most that a batch request may hold."""
DEFAULT_TOPIC_LIMIT_BYTES = 262_144
"""The MaximumMessageSize of a topic that sets none."""
MAX_ATTRIBUTES = 10
"""Message attributes: SQS takes no more, and SNS discards messages with more on their way to a queue."""
MAX_ID_LENGTH = 128
"""Characters of a MessageGroupId or MessageDeduplicationId."""
MAX_QUEUE_NAME_LENGTH = 80
MAX_TOPIC_NAME_LENGTH = 256

ATTRIBUTE_NAME = re.compile(r"(?!(?:aws|amazon)\.)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)", re.IGNORECASE)
MESSAGE_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
"""SendMessage, "valid Unicode characters": the same for bodies and attribute values."""
MESSAGE_ID = re.compile(r"[!-~]{1,128}")
"""A MessageGroupId or MessageDeduplicationId: alphanumerics and ASCII punctuation."""
