"""A study on disk or in an object store: the record, atomic files, locks, fingerprints, and checks of all of it."""
