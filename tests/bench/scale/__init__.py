"""Memory and rate as the inputs grow: `make scale`."""
