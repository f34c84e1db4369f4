"""From a queue to a handler and back: receive, process, settle."""
