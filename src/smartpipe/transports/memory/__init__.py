"""SNS and SQS in memory, with their real semantics, on the event loop's clock: for tests and experiments."""
