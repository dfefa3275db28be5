"""A model leaves the study: which one it is, the formats it is written in, the proof that each is the model that was
tested, and the card that goes with it."""
