"""The verdict as a document: its models, its JSON Schema, and how it is written and shown."""
