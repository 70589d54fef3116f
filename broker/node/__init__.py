"""A node's life: its connection, its loops and tasks, and the effects it carries out."""
