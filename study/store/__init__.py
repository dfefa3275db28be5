"""The files of a study, in a folder or an object store.

Event records, atomic writes, locks and leases, fingerprints, file schemas, and validation of untrusted files."""
