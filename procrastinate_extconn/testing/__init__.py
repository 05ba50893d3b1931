"""For tests: the contract kit for driver plugins, and help for applications."""
