"""The `kdstudy` command: one file per group of commands. Each command is a few lines that call a function elsewhere."""
