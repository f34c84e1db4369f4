"""SNS and SQS on AWS, or at an endpoint with the same API."""
