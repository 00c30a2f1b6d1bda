"""The agent's local API, over its unix socket."""

import json

from qrep import unixhttp
from qrep.errors import QrepError, Unreachable, UsageError, from_dict

LONGEST_WAIT = 20  # seconds a long poll may last; the agent answers sooner when something changed


class Client:
    """One agent. Every method raises the QrepError that the agent answered, or Unreachable when there is none."""

    def __init__(self, path):
        self.path = path

    def _request(self, method, target, body, timeout):
        try:
            return unixhttp.request(self.path, method, target, None if body is None else json.dumps(body).encode(), timeout)
        except FileNotFoundError:
            raise Unreachable(
                f"no agent at {self.path}", hint="start it with: sudo qrep daemon; --socket names another"
            ) from None
        except PermissionError:
            raise Unreachable(f"the agent at {self.path} does not serve this user", hint="run qrep as root") from None
        except ConnectionRefusedError:
            raise Unreachable(f"the agent at {self.path} is gone", hint="start it with: sudo qrep daemon") from None
        except TimeoutError:
            raise Unreachable(
                f"the agent at {self.path} did not answer in {timeout:g} s",
                hint="see what the agent last wrote to its stderr",
            ) from None
        except (OSError, unixhttp.BadAnswer) as error:
            raise self._broke_off(error) from error

    def _broke_off(self, error):
        return Unreachable(
            f"the agent at {self.path} broke off: {error}", hint="see what the agent last wrote to its stderr"
        )

    def call(self, method, path, body=None, *, timeout=30, **query):
        """One request, its JSON answer. path: below /v1, its parts already quoted with `part`."""
        response = self._request(method, f"/v1{path}{query_of(query)}", body, timeout)
        try:
            answer = response.read()
        except (OSError, unixhttp.BadAnswer) as error:
            raise self._broke_off(error) from error
        finally:
            response.close()
        try:
            value = json.loads(answer) if answer else None
        except ValueError:
            raise QrepError(
                f"the agent at {self.path} answered something that is not JSON (status {response.status})"
            ) from None
        if response.status >= 400:
            raise from_dict(value.get("error", {}) if isinstance(value, dict) else {})
        return value

    def text(self, path, timeout=30):
        """A request that is answered in text. path: the whole of it."""
        response = self._request("GET", path, None, timeout)
        try:
            answer = response.read()
        except (OSError, unixhttp.BadAnswer) as error:
            raise self._broke_off(error) from error
        finally:
            response.close()
        if response.status >= 400:
            raise from_dict(json.loads(answer).get("error", {}))
        return answer.decode()

    def get(self, path, **query):
        return self.call("GET", path, **query)

    def post(self, path, body=None, **query):
        return self.call("POST", path, body or {}, **query)

    def lines(self, path, timeout=None, **query):
        """The objects of a JSON-lines answer as they arrive. timeout: seconds without a line, of which empty ones count."""
        response = self._request("GET", f"/v1{path}{query_of(query)}", None, timeout)
        try:
            if response.status >= 400:
                raise from_dict(json.loads(response.read()).get("error", {}))
            for line in response:
                if line.strip():
                    yield json.loads(line)
        except (OSError, unixhttp.BadAnswer, ValueError) as error:
            raise self._broke_off(error) from error
        finally:
            response.close()

    def task(self, task):
        """The states of a long action, the last one being done or failed."""
        while True:
            yield task
            if task["state"] != "running":
                return
            task = self.call("GET", f"/tasks/{part(task['id'])}", wait=1, timeout=LONGEST_WAIT + 10)


def query_of(fields):
    """`?name=value&...` of what is not None, or nothing."""
    fields = {name: value for name, value in fields.items() if value is not None}
    if not fields:
        return ""
    from urllib.parse import urlencode  # here, because `qrep status` alone does without

    return f"?{urlencode(fields, doseq=True)}"


def part(name):
    """One segment of a path: the name that a person typed. Raises UsageError for what no object is called."""
    if not name or "/" in str(name):
        raise UsageError(f"{str(name)!r} cannot be a name here", hint="db is a job, db/1 a path of it (qrep path), db/1/2 a connection (qrep connection)")
    from urllib.parse import quote

    return quote(str(name), safe="")
