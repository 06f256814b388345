"""Names of tasks, for settings and plans: `jaxchat.tasks` itself is too much to import there."""

# The generated tasks, as `tasks.TASKS` has them
GENERATED = (
    "identity", "arithmetic", "arithmetic_two_step", "arithmetic_signs", "spelling", "counting",
    "choice", "facts", "repeat",
)  # fmt: skip
# right only with a call of a tool
GRADED_CALLS = ("arithmetic", "arithmetic_two_step", "arithmetic_signs", "counting")
CALLING = (*GRADED_CALLS, "gsm8k")  # tasks whose conversations call the calculator
UNGRADED = ("smoltalk",)  # conversations: no answer is right or wrong
