"""What users declare about their handlers, and the call of one: everything of a delivery but its message."""
