"""How memory and rate go on when the inputs do: `make scale`."""
