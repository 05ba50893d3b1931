"""Faults with texts and documents."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import Any, ClassVar

from .base import Fault


class ChangesTexts(Fault):
    """Changes each text that it binds, in a batch's documents too."""

    change: ClassVar[Callable[[str], Any]]

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        change = type(self).change
        args = {
            name: self.in_jobs(value)
            if name == "jobs"
            else change(value)
            if isinstance(value, str)
            else value
            for name, value in args.items()
        }
        return super().execute(raw, query, args)

    def in_jobs(self, jobs: str) -> str:
        """Change the texts in *jobs*."""
        change = type(self).change

        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: changed(one) for key, one in value.items()}
            if isinstance(value, list):
                return [changed(one) for one in value]
            return change(value) if isinstance(value, str) else value

        return json.dumps(changed(json.loads(jobs)))


class Strips(ChangesTexts):
    """Strips what is bound."""

    clause = "single_jobs_are_stored_as_sent"
    why = "already a job in the queue with the queueing lock"
    change = staticmethod(str.strip)


class StripsDocuments(ChangesTexts):
    """Strips what is in a document."""

    clause = "jobs_are_stored_as_sent"
    why = "already a job in the queue with the queueing lock"
    change = staticmethod(str.strip)


class Normalises(ChangesTexts):
    """Composes combining characters."""

    clause = "jobs_are_stored_as_sent"
    why = "is stored as"
    change = staticmethod(lambda text: unicodedata.normalize("NFC", text))


class UnifiesLines(ChangesTexts):
    """Ends lines as it likes."""

    clause = "values_come_back"
    why = "text came back as"
    change = staticmethod(lambda text: text.replace("\r\n", "\n"))


class EmptyIsNull(ChangesTexts):
    """Makes NULL of an empty text, as a well-known database does."""

    clause = "values_come_back"
    why = "text came back as None, not ''"
    change = staticmethod(lambda text: text or None)


class GuessesNumbers(ChangesTexts):
    """Makes numbers of texts that look like some."""

    clause = "values_come_back"
    why = "text came back as '123', not '0123'"
    change = staticmethod(lambda text: int(text) if text.isdigit() else text)


class CutsParameters(ChangesTexts):
    """Cuts what is longer than 64 kB."""

    clause = "values_come_back"
    why = "characters)"
    change = staticmethod(lambda text: text[:65_000])


class CutsDocuments(ChangesTexts):
    """Cuts it in documents."""

    clause = "large_batch"
    why = "are stored as [65000]"
    change = staticmethod(lambda text: text[:65_000])


class ReplacesAstral(ChangesTexts):
    """Replaces what takes four bytes, as a well-known database does."""

    clause = "values_come_back"
    why = "text came back as"
    change = staticmethod(lambda text: "".join(c if c < "\U00010000" else "?" for c in text))


class UnescapesEntities(ChangesTexts):
    """Reads a text as HTML."""

    clause = "values_come_back"
    why = "text came back as"
    change = staticmethod(lambda text: text.replace("&lt;", "<"))


class JsonAsText(Fault):
    """Encodes JSON a second time, as a codec for jsonb does."""

    clause = "worker_runs_it"
    why = "the worker ran []"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            jobs = [{**job, "args": json.dumps(job["args"])} for job in json.loads(args["jobs"])]
            args["jobs"] = json.dumps(jobs)
        return super().execute(raw, query, args)


class LosesDigits(Fault):
    """Makes floats of large numbers in documents."""

    clause = "jobs_are_stored_as_sent"
    why = "args is stored as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            jobs = json.loads(args["jobs"], parse_int=lambda n: float(n) if len(n) > 15 else int(n))
            args["jobs"] = json.dumps(jobs)
        return super().execute(raw, query, args)


class DropsRepetitions(Fault):
    """Sends what is the same but once."""

    clause = "jobs_are_stored_as_sent"
    why = "IndexError"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            jobs = {json.dumps(job, sort_keys=True): job for job in json.loads(args["jobs"])}
            args["jobs"] = json.dumps(list(jobs.values()))
        return super().execute(raw, query, args)


class DecodesWithFloats(Fault):
    """Decodes documents in rows, and loses digits."""

    clause = "reads"
    why = "list_jobs gives"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        for row in rows:
            if isinstance(row.get("args"), str):
                row["args"] = json.loads(row["args"], parse_int=float)
        return rows


class ForgetsLocks(Fault):
    """Leaves a lock away that is empty."""

    clause = "single_jobs_are_stored_as_sent"
    why = "lock is stored as None, not ''"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            jobs = [{k: v for k, v in job.items() if v != ""} for job in json.loads(args["jobs"])]
            args["jobs"] = json.dumps(jobs)
        return super().execute(raw, query, args)


class SplitsBatches(Fault):
    """Sends the first thousand jobs of a batch."""

    clause = "large_batch"
    why = "IndexError"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            args["jobs"] = json.dumps(json.loads(args["jobs"])[:1000])
        return super().execute(raw, query, args)


class EscapesBackslashes(Fault):
    """Doubles backslashes where the session's settings once asked for that, although it binds."""

    clause = "hostile_settings"
    why = "is stored as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if raw.info.parameter_status("standard_conforming_strings") == "off" and "jobs" in args:
            args["jobs"] = args["jobs"].replace("\\\\", "\\\\\\\\")
        return super().execute(raw, query, args)


class DropsMicrosecondsOfJobs(Fault):
    """Schedules to the second."""

    clause = "schedule_at"
    why = "is stored as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" in args:
            args["jobs"] = args["jobs"].replace(".999999", "")
        return super().execute(raw, query, args)
