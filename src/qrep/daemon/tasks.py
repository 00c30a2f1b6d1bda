"""Long actions that someone may follow: one thread each, progress and outcome kept for a while after the end."""

import secrets
import threading
import time
import traceback

from qrep.errors import NotFound, QrepError

KEPT = 500  # finished tasks remembered


class Task:
    """One long action. `progress` is a callable that gives the present figures, or None; `cancel` one that ends it soon, or None."""

    def __init__(self, kind, subject):
        self.id, self.kind, self.subject = secrets.token_hex(8), kind, subject
        self.progress = lambda: None
        self.cancel = None
        self.result = self.error = None
        self.ended = None
        self._done = threading.Event()

    @property
    def state(self):
        return "running" if self.ended is None else "failed" if self.error else "done"

    def finish(self, result=None, error=None):
        self.result, self.error = result, error
        self.ended = time.monotonic()
        self._done.set()

    def wait(self, timeout):
        return self._done.wait(timeout)

    def as_dict(self):
        running = self.ended is None
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "state": self.state,
            "progress": self.progress() if running else None,
            "result": self.result,
            "error": self.error.as_dict() if self.error else None,
        }


class Tasks:
    def __init__(self):
        self._tasks = {}
        self._lock = threading.Lock()

    def new(self, kind, subject):
        task = Task(kind, subject)
        with self._lock:
            self._tasks[task.id] = task
            finished = sorted((old for old in self._tasks.values() if old.ended is not None), key=lambda old: old.ended)
            for old in finished[: max(0, len(finished) - KEPT)]:
                del self._tasks[old.id]
        return task

    def start(self, kind, subject, action):
        """Run action(task) in a thread of its own; what it returns is the result, a QrepError its error."""
        task = self.new(kind, subject)
        try:
            threading.Thread(target=self._run, args=(task, action), name=f"{kind} {subject}", daemon=True).start()
        except RuntimeError as error:  # "can't start new thread"
            wrapped = QrepError(f"{kind} {subject}: {error}", hint="the host is out of memory or of threads (ulimit -u, TasksMax of the service)")
            task.finish(error=wrapped)
            raise wrapped from error
        return task

    @staticmethod
    def _run(task, action):
        try:
            task.finish(result=action(task))
        except QrepError as error:
            task.finish(error=error)
        except OSError as error:
            task.finish(error=QrepError(f"{task.kind} {task.subject}: {error}"))
        except BaseException as error:
            # A bug of ours: whoever waits must hear of it, and the service log needs the place.
            task.finish(
                error=QrepError(
                    f"{task.kind} {task.subject}: internal error: {error!r}",
                    hint="please report it with the agent's log",
                )
            )
            traceback.print_exc()

    def get(self, task_id):
        with self._lock:
            if task_id not in self._tasks:
                raise NotFound(
                    f"no task {task_id}", hint="a finished task is forgotten after a while", code="no-such-task"
                )
            return self._tasks[task_id]

    def running(self):
        with self._lock:
            return [task for task in self._tasks.values() if task.ended is None]
