"""The `kdstudy` command, with one module per group of subcommands.

Each subcommand parses its options and calls a function in another package."""
