"""Random damaged and hostile shards, read in a process with bounds on time and memory."""
