"""What peers say to each other and what follows from it: packets in, effects out, no I/O."""
