"""How many trials are planned, launched, recorded, resumed and exported."""
