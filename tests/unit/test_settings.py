"""The settings in the environment, and the one error message for a wrong one."""

from datetime import timedelta
from pathlib import Path

import pytest

from notify_worker.errors import SettingsError
from notify_worker.settings import VARIABLES, Settings


def problems(**env: str) -> list[str]:
    """Read an environment that is wrong; return what is wrong with it, a line each."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({f"NOTIFY_WORKER_{name}": value for name, value in env.items()})
    return str(caught.value).splitlines()


def test_an_empty_environment_gives_the_defaults_of_the_contract() -> None:
    assert Settings.from_env({"PATH": "/bin"}) == Settings(
        database_url="",
        fcm_url="https://fcm.googleapis.com",
        concurrency=100,
        request_timeout=timedelta(seconds=15),
        lease=timedelta(seconds=120),
        log_format="text",
    )


def test_every_variable_is_read(tmp_path: Path) -> None:
    env = {
        "NOTIFY_WORKER_DATABASE_URL": "host=db",
        "NOTIFY_WORKER_FCM_URL": "http://127.0.0.1:8787/",
        "NOTIFY_WORKER_HOME": str(tmp_path),
        "NOTIFY_WORKER_CONCURRENCY": "7",
        "NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS": "2.5",
        "NOTIFY_WORKER_LEASE_SECONDS": "60",
        "NOTIFY_WORKER_LOG_FORMAT": "json",
    }

    assert set(env) == set(VARIABLES)
    assert Settings.from_env(env) == Settings(
        database_url="host=db",
        fcm_url="http://127.0.0.1:8787",
        home=tmp_path,
        concurrency=7,
        request_timeout=timedelta(seconds=2.5),
        lease=timedelta(seconds=60),
        log_format="json",
    )


def test_a_metrics_address_is_no_setting_while_no_metrics_are_served() -> None:
    (problem,) = problems(METRICS_ADDRESS="127.0.0.1:9000")

    assert problem.startswith("NOTIFY_WORKER_METRICS_ADDRESS is not a setting. ")


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    assert Settings.from_env(dict.fromkeys(VARIABLES, "")) == Settings.from_env({})


def test_all_problems_are_named_at_once_a_line_each() -> None:
    found = problems(
        FCMURL="x", CONCURRENCY="many", FCM_URL="http://fcm.example", LOG_FORMAT="xml", REQUEST_TIMEOUT_SECONDS="30"
    )

    assert [line.split()[0].removeprefix("NOTIFY_WORKER_") for line in found] == [
        "FCMURL",
        "FCM_URL",
        "CONCURRENCY",
        "REQUEST_TIMEOUT_SECONDS",
        "LOG_FORMAT",
    ]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("FCMURL", "FCM_URL"),
        ("DATABASE", "DATABASE_URL"),
        ("LEASE_SECOND", "LEASE_SECONDS"),
        ("REQUEST_TIMEOUT", "REQUEST_TIMEOUT_SECONDS"),
    ],
)
def test_an_unknown_variable_is_answered_with_the_nearest_one(wrong: str, right: str) -> None:
    assert problems(**{wrong: "x"}) == [f"NOTIFY_WORKER_{wrong} is not a setting. Did you mean NOTIFY_WORKER_{right}?"]


def test_without_a_close_match_all_settings_are_listed() -> None:
    [problem] = problems(BATCH_SIZE="10")

    assert problem.startswith("NOTIFY_WORKER_BATCH_SIZE is not a setting. The settings are: ")
    assert "Did you mean" not in problem
    assert all(name in problem for name in VARIABLES)


@pytest.mark.parametrize(
    "url",
    [
        "https://fcm.googleapis.com",
        "https://[2001:db8::1]:8443",
        "http://127.0.0.1:8787",
        "http://127.9.9.9",
        "http://localhost:8787",
        "http://[::1]:8787",
    ],
)
def test_tls_goes_anywhere_and_plain_http_to_this_machine(url: str) -> None:
    assert Settings.from_env({"NOTIFY_WORKER_FCM_URL": url}).fcm_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://fcm.googleapis.com",
        "http://10.0.0.1",
        "http://0.0.0.0:8787",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com",
        "http://[2001:db8::1]",
        "ftp://127.0.0.1",
        "fcm.googleapis.com",
        "https://",
        "https://[::1",
    ],
)
def test_no_token_leaves_this_machine_in_the_clear(url: str) -> None:
    [problem] = problems(FCM_URL=url)

    assert problem.startswith(
        f'NOTIFY_WORKER_FCM_URL is "{url}". It has to begin with https://; plain http goes to this'
    )


def test_a_lease_that_ends_before_two_attempts_do_is_refused_with_the_shortest_that_does() -> None:
    [problem] = problems(LEASE_SECONDS="97")

    assert problem.startswith("NOTIFY_WORKER_LEASE_SECONDS is 97: too short.")
    assert "Set it to 98 or more" in problem
    assert Settings.from_env({"NOTIFY_WORKER_LEASE_SECONDS": "98"}).lease == timedelta(seconds=98)


def test_a_timeout_that_outgrows_the_lease_is_refused_too() -> None:
    [problem] = problems(REQUEST_TIMEOUT_SECONDS="20")

    assert "NOTIFY_WORKER_LEASE_SECONDS is 120: too short" in problem
    assert "Set it to 128 or more, or lower NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS." in problem


def test_a_lease_that_can_not_be_read_is_not_also_called_too_short() -> None:
    [problem] = problems(LEASE_SECONDS="long", REQUEST_TIMEOUT_SECONDS="20")

    assert problem.startswith('NOTIFY_WORKER_LEASE_SECONDS is "long".')


@pytest.mark.parametrize("number", ["0", "-1", "10001", "1.5", "1e3", "many", " 1", "²"])
def test_a_concurrency_that_is_no_whole_number_in_range_is_refused(number: str) -> None:
    assert problems(CONCURRENCY=number) == [
        f'NOTIFY_WORKER_CONCURRENCY is "{number}". It has to be a whole number from 1 to 10000.'
    ]


@pytest.mark.parametrize("name", ["REQUEST_TIMEOUT_SECONDS", "LEASE_SECONDS"])
@pytest.mark.parametrize("number", ["0", "-1", "3601", "inf", "nan", "1 min"])
def test_a_length_that_is_no_number_of_seconds_up_to_an_hour_is_refused(name: str, number: str) -> None:
    assert problems(**{name: number}) == [
        f'NOTIFY_WORKER_{name} is "{number}". It has to be a number of seconds, more than 0 and at most 3600.'
    ]


def test_a_length_that_rounds_to_nothing_is_refused() -> None:
    assert problems(REQUEST_TIMEOUT_SECONDS="1e-7")


def test_a_request_timeout_over_twenty_seconds_is_refused() -> None:
    assert problems(REQUEST_TIMEOUT_SECONDS="20.5") == [
        'NOTIFY_WORKER_REQUEST_TIMEOUT_SECONDS is "20.5". It can be at most 20.'
    ]


def test_no_repr_and_no_error_shows_the_database_or_its_password() -> None:
    secret = "postgresql://me:opensesame@db/shop"  # no account of anybody

    settings = Settings.from_env({"NOTIFY_WORKER_DATABASE_URL": secret})

    assert "sesame" not in repr(settings)
    assert "sesame" not in "".join(problems(DATABASE_URL=secret, CONCURRENCY="0"))


def test_no_error_repeats_the_password_of_a_url() -> None:
    assert "sesame" not in "".join(problems(FCM_URL="http://me:opensesame@fcm.example"))
