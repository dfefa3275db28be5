"""The study file: the settings and their rules, how they are loaded and overridden, and how mistakes are explained."""
