"""Pipelines that test, build and deploy services."""
