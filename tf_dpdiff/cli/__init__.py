"""The command line: gin_config and one thin module a verb (train, sample, evaluate, select, audit, export)."""
