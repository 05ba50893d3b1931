"""The plugins that come with the core."""
