"""The passes that come with the package, and the registry of all passes."""
