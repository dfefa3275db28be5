"""Series of studies that differ in one setting: their folder, running them in turn, their plan and their progress."""
