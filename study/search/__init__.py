"""The search: proposals (Optuna), early stopping (ASHA), and the trial manager that decides and records.

Nothing here starts Ray actors."""
