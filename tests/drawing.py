"""How often a test draws its example: as often by default as makes it quick, ten times as often where CI explores."""

from hypothesis import settings

EXPLORE = "explore"


def examples(count: int) -> settings:
    """A decorator: hypothesis tries so many examples, ten times as many under `--hypothesis-profile=explore`."""
    exploring = settings.get_current_profile_name() == EXPLORE
    return settings(max_examples=10 * count if exploring else count)
