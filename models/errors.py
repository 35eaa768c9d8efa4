"""The one exception that means "the user can mend this": every command makes it exit code 2."""

from models.text import visible


class SettingError(ValueError):
    """A setting that cannot be used.

    Its text is one sentence naming the setting, the value given and what would be valid.
    Commands print it without a stack trace and exit with code 2.
    """

    def __str__(self) -> str:
        # Names and cells of other people's files are quoted in it: they move no cursor.
        return visible(super().__str__(), keep="\n")


def one_of(setting: str, value: object, valid: object) -> SettingError:
    """The sentence for a value outside a closed list."""
    choices = ", ".join(sorted(map(str, valid)))  # type: ignore[call-overload]
    return SettingError(f"{setting}={value!s} is not known; valid: {choices}.")


def not_ascii(sweep: str, odd: str) -> SettingError:
    """The sentence for a sweep's name with the letter `odd`, whoever reads the name first."""
    return SettingError(
        f"sweep={sweep} has {odd!r}, which is outside ASCII: it names folders and Slurm's jobs, "
        "which other machines and terminals would write otherwise; use plain letters, digits, - "
        "and _."
    )
