"""The clauses of the contract, a file for each subject. They run in the order that `PluginContract` gives."""
