"""What can go wrong in ways that have a remedy."""


class UserError(Exception):
    """One line that names the setting and what would be right. The command ends with exit code 2."""


class StudyFailedError(Exception):
    """The study itself cannot go on, one line. The command ends with exit code 1."""


class StorageError(StudyFailedError):
    """The study's storage cannot be written or reached, one line; what was written before is kept."""


class InterruptedStudyError(Exception):
    """Somebody stopped the study; what is recorded is kept. The command ends with exit code 130."""


class MissingTeacherError(Exception):
    """A stage's folder cannot be named before the teacher is there."""
