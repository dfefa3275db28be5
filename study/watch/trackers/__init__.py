"""Where curves can be followed besides `kdstudy status`: one file per tracker, `feed.py` sends them what is recorded."""
