"""The service `$node`, by which tools look at a node and at what it knows of the cluster (moleculer protocol §10)."""
