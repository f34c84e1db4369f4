"""Metrics and traces: recorded in the process, and exported in the forms that other tools read."""
