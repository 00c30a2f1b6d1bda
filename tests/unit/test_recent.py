"""Rates of the last seconds."""

from qrep.source.recent import Recent


def test_a_rate_is_that_of_the_last_seconds_and_not_of_the_whole_time():
    recent = Recent(5.0)
    recent.begin(100.0)
    for tenth in range(1, 601):  # 30 s at 10 bytes a second, then 30 s at 1000
        now, sent = 100 + tenth / 10, min(tenth, 300) + 100 * max(0, tenth - 300)
        rate = recent.rates(now, {"sent": sent})["sent"]
        if 60 < tenth <= 300:
            assert 9.9 < rate < 10.1
        if tenth > 353:
            assert 990 < rate < 1010
    assert len(recent._seen) < 25


def test_whoever_asks_once_is_told_the_rate_since_the_start():
    recent = Recent(5.0)
    recent.begin(5.0)
    assert recent.rates(65.0, {"sent": 600}) == {"sent": 10.0}
    assert recent.rates(125.0, {"sent": 1200, "read": 60}) == {"sent": 10.0, "read": 1.0}  # since the last look, a minute ago


def test_a_new_session_begins_at_nothing():
    recent = Recent(5.0)
    recent.begin(0.0)
    recent.rates(10.0, {"sent": 1000})
    recent.begin(20.0)
    assert recent.rates(21.0, {"sent": 50}) == {"sent": 50.0} and recent.rates(21.0, {}) == {}
