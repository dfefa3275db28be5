"""Exceptions of kdstudy. Every message is one line."""


class UserError(Exception):
    """An error that the user can fix; the message names the setting and the remedy. Exit code 2."""


class StudyFailedError(Exception):
    """The study cannot continue. Exit code 1."""


class StorageError(StudyFailedError):
    """The study's storage cannot be written or reached. Earlier results are kept. Exit code 1."""


class InterruptedStudyError(Exception):
    """The user stopped the study. Recorded results are kept. Exit code 130."""


class MissingTeacherError(Exception):
    """A stage depends on the teacher, which is not available yet."""
