"""Square: the random search, what it draws, the patterns it tries, and the proposals it may pass over."""
