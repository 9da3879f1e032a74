"""Commands about this machine: a check of its runtimes, and engines built for its GPU."""
