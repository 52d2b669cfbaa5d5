"""The fixture `takes_effect_once`, in a suite of a user's."""

import pytest

pytest_plugins = ["pytester"]

SUITE = """
    import effectonce as eo

    ONCE = eo.Once("memory:", identify=eo.header("event-id"), effects=eo.Outside("repeat"))

    class Bank:
        def __init__(self): self.reset()
        def reset(self): self.charges = {}
        def effects(self): return self.charges
        def charge(self, key): self.charges[key] = self.charges.get(key, 0) + 1
        def put(self, key): self.charges[key] = 1

    bank = Bank()
    RECORDS = [("e1", b""), ("e2", b"")]

    def test_right(takes_effect_once):
        def handler(event):
            assert event.topic == "payments"
            bank.put(event.id)

        assert takes_effect_once(handler, RECORDS, ONCE, target=bank, topic="payments").ok

    def test_wrong(takes_effect_once):
        takes_effect_once(lambda event: bank.charge(event.id), RECORDS, ONCE, target=bank)

    def test_allowed(takes_effect_once):
        handler = lambda event: bank.charge(event.id)
        takes_effect_once(handler, RECORDS, ONCE, target=bank, may_repeat=True)
"""


def test_a_wrong_handler_fails_its_test_with_the_text_and_no_traceback(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["REPEATED in * cases:*", "*Killed after Bank.charge for e1, before*", "What to do:"]
    )
    result.stdout.no_fnmatch_line("*plugin.py*")
    said, _, _ = result.stdout.str().partition("short test summary info")  # in CI it is not cut off
    assert said.count("What to do:") == 1, "the report is printed twice"
