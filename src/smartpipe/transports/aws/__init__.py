"""SNS and SQS on AWS, or on anything that speaks their API."""
