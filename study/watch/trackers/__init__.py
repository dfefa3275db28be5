"""Where curves can be followed besides `kdstudy status`: one file each; `feed.py` feeds them from the records."""
