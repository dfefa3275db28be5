"""The stages of a study, one file each. `base.py` is what a stage must offer; `order.py` is the list of them."""
