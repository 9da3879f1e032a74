"""What goes wrong: a store that fails, processes that die, images that kill."""
