"""What a study will do and cost, and checks that it can run, before it starts.

`kdstudy plan` prints both; `kdstudy run` repeats the checks."""
