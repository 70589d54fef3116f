"""The commands of `broker`, each a function of its options."""
