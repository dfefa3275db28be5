"""Secrets: refused in URIs, and removed from all that is printed or written."""

import os
import re

# The user and password of a URI. A password may hold slashes, so the part before the @ may look like a path.
USERINFO = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s/@:?#\"'<>]*)(:[^\s@\"'<>]*)?@")
PORT = re.compile(r":\d+(/.*)?")  # host:port/path@…
NAME_IS_SECRET = (
    r"(?:x-(?:amz|goog)-)?(?:signature|credentials?|security-token)|sig|key|"
    r"(?:aws[_-]?)?(?:access[_-]?key(?:[_-]?id)?|secret(?:[_-]?access)?(?:[_-]?key)?|session[_-]?token)|"
    r"(?:api|account|private|shared|sas)[_-]?(?:key|token)|(?:access|auth|bearer|id|refresh|oauth)?[_-]?token|"
    r"passw(?:or)?d|passphrase|pwd|client[_-]?secret|authorization"
)
PARAMETER = re.compile(rf"(?i)([?&;](?:{NAME_IS_SECRET})=)([^\s&;\"'<>]+)")
HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9+/_.=-]{8,}")
AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")
VARIABLE = re.compile(r"(?i)(?:^|_)(?:secrets?|tokens?|password|passwd|passphrase|pwd|credentials?|key|apikey)(?:_|$)")
SHORTEST = 8  # characters; a shorter value would match ordinary text
HIDDEN = "***"
NO_SECRETS = ("anonymous", "git")  # users that need no password
# Schemes in which a user without a password is not a secret.
USERS_ARE_NAMES = ("abfs", "abfss", "git+ssh", "hdfs", "sftp", "ssh", "wasb", "wasbs")
# Schemes whose host is not in the URI: it is the service's own, or this machine's settings name it.
OWN_HOSTS = ("file", "gcs", "gs", "s3", "s3a")
REMEDY = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "http": "the variables of the service, such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
SAME_AS = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "wasb": "abfs", "https": "http"}


def problem_with(text: str, is_location: bool = True) -> str | None:
    """Why a path or URI is refused: it holds credentials, which would be recorded with it. None if it holds none.

    The result does not contain the secret. is_location: False for prose, which may mention a URI with parameters.
    """
    scheme = text.partition("://")[0].strip().lower()
    if "://" not in text:
        return None
    if _hides_user(text) != text:
        what = "credentials in a URI"
    elif is_location and PARAMETER.search(text):
        what = "a secret in a URI's parameters"
    else:
        return None
    variables = REMEDY.get(SAME_AS.get(scheme, scheme), "the environment variables of its client")
    return f"holds {what}, which everyone who reads the study would see; remove them and set {variables}"


def names_a_host(text: str) -> bool:
    """Whether reading a URI contacts a host that the URI itself names, and may send it this machine's credentials."""
    scheme, separator, rest = text.partition("://")
    return bool(separator) and (scheme.lower() not in OWN_HOSTS or "?" in rest)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of that name holds a secret, not just the path of one."""
    return bool(VARIABLE.search(name)) and not name.upper().endswith(("_PATH", "_FILE", "_CREDENTIALS"))


def redact(text: str) -> str:
    """Replace the secrets in a text by ***: those in URIs and headers, and the values of this process's environment
    variables whose names say secret, token, password or key."""
    if "://" in text:
        text = _hides_user(text)
    text = AWS_KEY.sub(HIDDEN, HEADER.sub(rf"\1 {HIDDEN}", PARAMETER.sub(rf"\1{HIDDEN}", text)))
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return text


def _hides_user(text: str) -> str:
    def hide(found: re.Match) -> str:
        scheme, user, password = found.groups()
        if password is None and (user in ("", *NO_SECRETS) or scheme[:-3].lower() in USERS_ARE_NAMES):
            return found[0]
        if password == ":" and user in NO_SECRETS:
            return found[0]
        if password and PORT.fullmatch(password) and "/" in password:
            return found[0]
        return f"{scheme}{HIDDEN}@"

    return USERINFO.sub(hide, text)


def _secret_values() -> list[str]:
    """The longest first, so that none remains in part. Paths are left out: they only say where a secret is."""
    values = {value for name, value in os.environ.items()
              if is_secret_name(name) and len(value) >= SHORTEST and not value.startswith(("/", "~"))}
    return sorted(values, key=len, reverse=True)
