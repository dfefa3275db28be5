"""What the finished trials mean: reads a study's folder with pandas alone, also while the study still runs."""
