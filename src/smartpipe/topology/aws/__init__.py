"""The deployed topology: reads, changes and verifies it on AWS."""
