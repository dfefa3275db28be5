"""The study file: settings and their validation, loading and overrides, and explanations of mistakes.

`permission` decides which functions and hosts of an untrusted study may be used."""
