"""The nodes of the cluster, the actions they offer and the events they receive."""
