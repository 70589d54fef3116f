"""Services as users write them: declarations, schemas, typed parameters."""
