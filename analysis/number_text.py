"""Numbers as a reader sees them, in tables, sentences and figures."""

from typing import Any


def show_points(value: float) -> str:
    """+6.63 or −0.35: percentage points, always with a sign, and a minus sign rather than a hyphen."""
    return f"{value:+.2f}".replace("-", "−")


def show_bounds(interval: dict[str, Any]) -> str:
    """+5.13 to +8.13."""
    return f"{show_points(interval['low'])} to {show_points(interval['high'])}"


def gain_cell(gain: dict[str, Any] | None) -> str:
    """+6.63 [+5.13, +8.13]; empty for None."""
    if gain is None:
        return ""
    return f"{show_points(gain['mean'])} [{show_points(gain['low'])}, {show_points(gain['high'])}]"


def show_interval(gain: dict[str, Any]) -> str:
    """+6.63 points (95 % interval +5.13 to +8.13)."""
    if gain.get("comparisons", 1) > 1:
        return show_simultaneous(gain)
    return f"{show_points(gain['mean'])} points (95 % interval {show_bounds(gain)})"


def show_simultaneous(gain: dict[str, Any]) -> str:
    """+6.63 points (simultaneous 95 % interval +5.13 to +8.13): one of several that hold together."""
    return f"{show_points(gain['mean'])} points (simultaneous 95 % interval {show_bounds(gain)})"


SMALL_P = 1e-4  # smaller p-values are given as smaller than this


def show_p(value: float) -> str:
    """0.012; < 0.0001."""
    return f"< {SMALL_P:g}" if value < SMALL_P else f"{value:.2g}"


def counted(number: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(texts: list[str], last: str) -> str:
    """a, b and c; last: the word before the last, such as `and`."""
    return f" {last} ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, but 0.9999 not as 1: the decay of an average is one minus a small number."""
    text = f"{value:.{digits}g}"
    return f"{value:.6g}" if text == "1" and value != 1 else text


def show_value(value: Any) -> str:
    """A parameter's value: 1024, 0.0015, adamw."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1000 else significant(value)


def show_number(value: float, digits: int = 3) -> str:
    """4, 0.5, 8.1e-4: short, and never with more zeros than one can count."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return significant(value, digits)


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def number_word(number: int) -> str:
    """three; 11 and above as digits."""
    return NUMBERS[number - 1] if 1 <= number <= len(NUMBERS) else str(number)


def ordinal(number: int) -> str:
    """third; 11th and so on as digits, for numbers up to 20."""
    return ORDINALS[number - 1] if 1 <= number <= len(ORDINALS) else f"{number}th"
