"""What to try next (Optuna), what to stop early (ASHA), and the manager that decides and records. No Ray actors."""
