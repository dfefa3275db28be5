"""Every figure of the report under its name, with its heading, its caption and what limits it. See `catalogue`."""
