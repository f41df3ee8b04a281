import random

from server.orchestration.selection import split_of


def ask(text):
    return [{"role": "system", "content": "s"}, {"role": "user", "content": text}]


def test_the_split_never_changes():
    sides = "".join(split_of(ask(f"problem {number}"), 0.2)[0] for number in range(40))
    assert sides == "hthtthttttththtttttttthhhthtttthtttthtth"


def test_the_share_is_about_right_and_grows_monotonously():
    texts = [str(random.Random(number).random()) for number in range(2000)]
    small = {text for text in texts if split_of(ask(text), 0.1) == "held_out"}
    large = {text for text in texts if split_of(ask(text), 0.3) == "held_out"}
    assert small < large
    assert 150 < len(small) < 250
    assert 520 < len(large) < 680


def test_only_the_first_user_message_counts():
    longer = [*ask("q"), {"role": "assistant", "content": "a"}, {"role": "user", "content": "more"}]
    for text in map(str, range(50)):
        assert split_of(ask(text), 0.5) == split_of([{"role": "user", "content": text}, *longer], 0.5)


def test_parts_are_read_as_their_text():
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {}}]}]
    assert all(split_of(parts, share) == split_of(ask("q"), share) for share in (0.01, 0.2, 0.5, 0.8, 0.99))


def test_odd_conversations_have_a_side():
    for messages in ([], [{"role": "system", "content": "s"}], [{"role": "user", "content": None}], ask("\ud800")):
        assert split_of(messages, 0.5) in ("held_out", "training")
