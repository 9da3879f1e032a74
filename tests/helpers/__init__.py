"""Helpers that tests share: stores, servers, devices, documents and processes."""
