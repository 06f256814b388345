"""Small talk: one intent a text, short answers, bare questions trained on."""

from jaxchat.tasks.identity import INTENTS, IdentityTask


def test_a_text_never_has_two_answers() -> None:
    task = IdentityTask(0)
    answers: dict[str, str] = {}
    for index in range(20_000):
        problem = task.problem("train", index)
        assert answers.setdefault(problem.key, problem.answer) == problem.answer, problem.prompt


def test_answers_are_short_and_distinct() -> None:
    answers = [intent.answer for intent in INTENTS]
    assert len(set(answers)) == len(answers)
    assert max(len(answer.split()) for answer in answers) <= 25


def test_the_bare_questions_are_trained_on() -> None:
    task = IdentityTask(0)
    prompts = {task.problem("train", index).prompt for index in range(20_000)}
    for question in ("Who are you?", "Who made you?", "What can you do?", "Hello!", "Thanks!"):
        assert question in prompts


def test_it_says_what_it_is() -> None:
    task = IdentityTask(0)
    said = {
        problem.prompt: problem.answer
        for problem in (task.problem("train", index) for index in range(20_000))
    }
    assert said["Who are you?"].startswith("I am jaxchat, a small language model")
    assert "the jaxchat project" in said["Who made you?"]
    assert "spell words" in said["What can you do?"]


def test_every_intent_is_held_out_too() -> None:
    task = IdentityTask(0)
    answers = {task.problem("test", index).answer for index in range(400)}
    assert answers == {intent.answer.replace("{name}", "jaxchat") for intent in INTENTS}
