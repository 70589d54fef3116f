"""The log lines of the migration. The first four are the guide's: people and alerts search for their exact text."""

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
UNREACHABLE = "The database cannot be reached: {}. The service retries until it answers"
REACHABLE = "The database can be reached again"
