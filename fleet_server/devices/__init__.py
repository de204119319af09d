"""The devices: how they join, in which cohort they are, and what they say of themselves."""
