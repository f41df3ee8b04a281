from server.supervisor.first_run import name_cause


class DriverError(Exception):
    sqlstate = "3D000"


class WrappedError(Exception):
    statement = None


def wrap(cause: Exception, wrapped: Exception) -> Exception:
    wrapped.__cause__ = cause
    return wrapped


def test_the_driver_says_why_a_database_is_not_opened():
    error = wrap(
        wrap(DriverError('database "x" does not exist'), ValueError("between")), WrappedError("a page of words")
    )
    assert name_cause(error) == 'database "x" does not exist; make it first, empty: `createdb`'
    assert name_cause(wrap(OSError("Connect call failed"), WrappedError())) == "Connect call failed"


def test_a_statement_that_failed_is_told_with_its_words():
    error = wrap(DriverError("no such column"), WrappedError("[SQL: SELECT x]"))
    error.statement = "SELECT x"
    assert name_cause(error) == "[SQL: SELECT x]"
