"""Limits of SQS and SNS. Each is defined once, here.

Sources: Amazon SQS Developer Guide, "Amazon SQS message quotas", "Amazon SQS queue quotas"; Amazon SNS, "Quotas"; API
references of SendMessage, ReceiveMessage, ChangeMessageVisibility and Publish.
"""

from __future__ import annotations

import re

MAX_BATCH_ENTRIES = 10
"""Entries in a batch request, and messages in one receive call."""
MAX_WAIT_SECONDS = 20
"""The maximum of WaitTimeSeconds in ReceiveMessage."""
MAX_VISIBILITY_SECONDS = 43_200
"""A message can stay invisible for at most 12 hours after it was received."""
MAX_DELAY_SECONDS = 900
"""The maximum of DelaySeconds of a queue or of one message."""
MAX_RETENTION_SECONDS = 1_209_600
"""The maximum of MessageRetentionPeriod: SQS deletes messages after 14 days at the latest."""
MAX_RECEIVES = 1_000
"""The maximum of maxReceiveCount in a redrive policy."""
MIN_MESSAGE_LIMIT_BYTES = 1_024
"""The minimum of MaximumMessageSize."""
MAX_MESSAGE_BYTES = 1_048_576
"""The maximum of MaximumMessageSize, which is the default of a queue. Also the maximum size of a batch request."""
DEFAULT_TOPIC_LIMIT_BYTES = 262_144
"""The default MaximumMessageSize of a topic."""
MAX_ATTRIBUTES = 10
"""Message attributes: SQS refuses a message with more, and SNS discards it on its way to a queue."""
MAX_NUMBER_DIGITS = 38
"""The maximum number of digits in a message attribute of the type Number."""
MAX_ID_LENGTH = 128
"""The maximum number of characters in a MessageGroupId or MessageDeduplicationId."""
MAX_QUEUE_NAME_LENGTH = 80
MAX_TOPIC_NAME_LENGTH = 256

ATTRIBUTE_NAME = re.compile(r"(?!(?:aws|amazon)\.)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,256}(?<!\.)", re.IGNORECASE)
MESSAGE_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
"""Valid characters of bodies and attribute values, as in the API reference of SendMessage."""
MESSAGE_ID = re.compile(r"[!-~]{1,128}")
"""A MessageGroupId or MessageDeduplicationId: letters, digits and punctuation of ASCII."""
