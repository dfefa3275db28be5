"""How one model is trained: images, views, models, losses and training loops. Searches are not its concern."""
