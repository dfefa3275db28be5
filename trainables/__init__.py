"""How one model is trained: data, views, models, losses and the loops. Knows nothing of searches."""
