"""The log lines of the migration. The first four are promises: people and alerts look for them as they stand."""

__all__ = [
    "ADDED",
    "ADDING",
    "AWAY",
    "EXISTS",
    "FAILED",
    "INDEX_ADDED",
    "INDEX_ADDING",
    "INDEX_FAILED",
    "REACHABLE",
    "UNREACHABLE",
]

ADDING = "🔄 Adding deletedAt column to environments table"
ADDED = "✅ deletedAt column added successfully"
EXISTS = "✅ deletedAt column already exists"
FAILED = "❌ Failed to add deletedAt column"

INDEX_ADDING = "🔄 Creating index on deletedAt column"
INDEX_ADDED = "✅ deletedAt index created successfully"
INDEX_FAILED = "❌ Failed to create deletedAt index: %s"

AWAY = "The database cannot be reached now."
UNREACHABLE = "The database cannot be reached: {}. It is tried again until it answers"
REACHABLE = "The database can be reached again"
