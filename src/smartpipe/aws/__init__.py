"""Amazon SNS and SQS: the only place, with ``smartpipe.blocking``, that knows botocore."""
