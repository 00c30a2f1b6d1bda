import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep import units
from qrep.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize("text, size", [
    ("0", 0), ("4096", 4096), ("17B", 17), ("50M", 50 * MIB), ("50MiB", 50 * MIB), ("50 MiB", 50 * MIB),
    ("50MB", 50_000_000), ("1.5G", 3 * GIB // 2), ("4k", 4 * KIB), ("4kB", 4000), ("2T", 2048 * GIB),
    ("1E", 1 << 60), (4096, 4096),
])  # fmt: skip
def test_a_size_is_bytes_binary_unless_it_says_decimal(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", [
    "", " ", "M", "-1", "+1", "1e3", "50m", "50mb", "50Mb", "0x10", "1.G", ".5G", "50M ", "5 0M", "1,5G", "٣M", "8E",
    "400Mbit", "0.3", "50MiB/s", "unlimited", "9" * 30, None, True, -1, 1.5, "1\n", "2x",
])  # fmt: skip
def test_a_size_that_is_not_one_is_a_usage_error_with_a_way_out(text):
    with pytest.raises(UsageError) as caught:
        units.parse_size(text)
    assert caught.value.hint and caught.value.exit_code == 2


def test_a_unit_in_the_wrong_case_is_named_with_what_was_meant():
    with pytest.raises(UsageError) as caught:
        units.parse_size("50m")
    assert "unknown unit 'm'" in caught.value.message
    assert "did you mean 50M?" in caught.value.hint


@pytest.mark.parametrize("text, rate_bytes_per_s", [
    ("50M", 50 * MIB), ("50MiB/s", 50 * MIB), ("50MB", 50_000_000), ("400Mbit", 50_000_000), ("1Gbit/s", 125_000_000),
    ("8bit", 1), ("1Mibit", MIB // 8), ("unlimited", None), (4096, 4096),
])  # fmt: skip
def test_a_rate_is_bytes_per_second_and_bits_are_divided_by_eight(text, rate_bytes_per_s):
    assert units.parse_rate(text) == rate_bytes_per_s


@pytest.mark.parametrize(
    "text", ["0", "0M", "7bit", "50Mbps", "Unlimited", "50M/h", "/s", "", None, "50m", 0, -1, True]
)
def test_a_rate_that_moves_nothing_or_makes_no_sense_is_a_usage_error(text):
    with pytest.raises(UsageError) as caught:
        units.parse_rate(text)
    assert "400Mbit or unlimited" in caught.value.hint


@pytest.mark.parametrize("text, seconds", [
    ("30s", 30), ("15m", 900), ("3h12m", 11520), ("2d", 172800), ("500ms", 0.5), ("1m500ms", 60.5), ("0s", 0),
    ("1d1h1m1s1ms", 90061.001),
])  # fmt: skip
def test_a_duration_is_seconds(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", 30, "12m3h", "1h1h", "1.5h", "-1s", "1w", "30 s", "30S", "s", "9" * 15 + "d"]
)
def test_a_duration_that_is_not_one_is_a_usage_error(text):
    with pytest.raises(UsageError) as caught:
        units.parse_duration(text)
    assert "3h12m" in caught.value.hint


@pytest.mark.parametrize("text, size", [("2x", 2000), ("0.5x", 500), ("0.0001x", 1), ("4K", 4096)])
def test_a_space_is_a_size_or_a_multiple_of_the_volume_rounded_up(text, size):
    assert units.parse_space(text, 1000) == size


@pytest.mark.parametrize("text", ["x", "-2x", "2Mx", "2xx", "two x"])
def test_a_multiple_that_is_not_one_is_a_usage_error(text):
    with pytest.raises(UsageError, match="multiple"):
        units.parse_space(text, 1000)


@pytest.mark.parametrize("size, text", [
    (0, "0 B"), (17, "17 B"), (1023, "1023 B"), (1024, "1 KiB"), (500 * GIB, "500 GiB"), (3328599654, "3.1 GiB"),
    (812 * MIB + 7, "812 MiB"), (GIB - 1, "1.0 GiB"), (int(9.97 * MIB), "10 MiB"), (2 * GIB + 1, "2.0 GiB"),
    (1 << 63, "8 EiB"),
])  # fmt: skip
def test_a_size_is_shown_with_two_significant_digits_and_whole_numbers_stay_whole(size, text):
    assert units.format_size(size) == text


def test_a_measured_rate_can_be_shown_with_more_digits():
    assert units.format_rate(int(2.69 * GIB), digits=2) == "2.69 GiB/s"
    assert units.format_rate(int(12.34 * GIB), digits=2) == "12.3 GiB/s"
    assert units.format_rate(None) == "unlimited"


@pytest.mark.parametrize("seconds, lag, to_go, clock", [
    (0, "0s", "0 s", "00:00:00"), (45.9, "45s", "46 s", "00:00:46"), (64, "1m", "1 min 04 s", "00:01:04"),
    (231, "3m", "3 min 51 s", "00:03:51"), (11520, "3h12m", "3 h 12 min", "03:12:00"),
    (7200, "2h", "2 h 00 min", "02:00:00"),
    (183600, "2d3h", "51 h 00 min", "51:00:00"), (172800, "2d", "48 h 00 min", "48:00:00"),
])  # fmt: skip
def test_durations_are_shown_as_a_lag_as_time_to_go_and_as_a_clock(seconds, lag, to_go, clock):
    assert units.format_duration(seconds) == lag
    assert units.format_time_to_go(seconds) == to_go
    assert units.format_clock(seconds) == clock


round_sizes = st.builds(lambda count, power: count << power, st.integers(0, 1000), st.sampled_from([10, 20, 30, 40]))


@given(st.integers(0, units.MAX_BYTES) | round_sizes)
def test_an_exact_size_parses_back_to_the_same_bytes(size):
    assert units.parse_size(units.exact_size(size)) == size


@given(st.none() | st.integers(1, units.MAX_BYTES))
def test_an_exact_rate_parses_back_to_the_same_rate(rate_bytes_per_s):
    assert units.parse_rate(units.exact_rate(rate_bytes_per_s)) == rate_bytes_per_s


@given(st.integers(0, 1 << 62))
def test_a_shown_size_is_within_five_percent_of_the_truth(size):
    shown = units.format_size(size).replace(" ", "")
    number, unit = shown.rstrip("KMGTPEiB"), shown.lstrip("0123456789.")
    assert abs(float(number) * units.BYTE_UNITS[unit] - size) <= size * 0.05


@given(st.text(max_size=12))
def test_any_text_is_either_parsed_or_a_usage_error(text):
    for parse in (units.parse_size, units.parse_rate, units.parse_duration, lambda t: units.parse_space(t, 10)):
        try:
            value = parse(text)
        except UsageError as err:
            assert err.hint
        else:
            assert value is None or value >= 0
