"""A run as an object: what was chosen, what it is built from, where its files lie, what it releases."""
