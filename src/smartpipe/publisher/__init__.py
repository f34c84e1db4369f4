"""Turns events into requests to SNS and SQS."""
