"""Event contracts: their JSON Schemas, and the comparison of a class with the versions before it."""
