"""OpenAI's files and batches, as the API reference and the batch guide describe them.

A bad input file makes a batch that is created and then fails. Lines that were answered are in the output file, all
others in the error file: refused ones with the status and body of their answer, the rest with an `error` of their own.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from providers import openai_wire as wire
from providers.batches import DAY, Batch, look, of, page, parsed
from providers.model import Config, RefusedError, dump
from providers.shop import Shop

MOST_LINES = 50_000
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
EXPIRED = {"code": "batch_expired", "message": "This request could not be executed before the completion window "
                                               "expired."}  # fmt: skip
CANCELLED = {"code": "batch_cancelled", "message": "This request was cancelled before it was executed."}
DUPLICATE = ("The custom_id for this request is a duplicate of another request. The custom_id parameter must be unique "
             "for each request in a batch.")  # fmt: skip


def line_json(batch: Batch, number: int, custom_id: str, kind: str, answer: Any) -> dict[str, Any]:
    """A line of the output file or the error file."""
    line = {"id": f"batch_req_{batch.id[6:]}{number:06x}", "custom_id": custom_id, "response": None, "error": None}
    if kind == "expired":
        return {**line, "error": EXPIRED}
    if kind == "canceled":
        return {**line, "error": CANCELLED}
    status, body = (200, answer) if kind == "succeeded" else (answer.status, answer.body)
    return {**line, "response": {"status_code": status, "request_id": f"req_{number:012x}", "body": body}}


def problem(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    """Why a whole batch fails, as its `errors` list it."""
    return {"code": code, "message": message, "line": line, "param": param}


def store(shop: Shop, content: bytes, name: str, purpose: str) -> dict[str, Any]:
    """Keep a file; gives the file object."""
    number = f"file-{next(shop.numbers):012x}"
    facts = {"id": number, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": name,
             "purpose": purpose, "status": "processed", "expires_at": None, "status_details": None}  # fmt: skip
    shop.files[number] = (facts, content)
    return facts


def write_files(shop: Shop, batch: Batch) -> None:
    """The output file and the error file of a batch that has ended; an empty one is not written."""
    for name, good in (("output", True), ("error", False)):
        rows = [line_json(batch, i, *r) for i, r in enumerate(batch.results) if (r[1] == "succeeded") is good]
        if rows:
            content = "".join(dump(row) + "\n" for row in rows).encode()
            batch.files[name] = store(shop, content, f"{batch.id}_{name}.jsonl", "batch_output")["id"]


def upload(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """POST /v1/files"""
    parts: dict[str, tuple[str, bytes]] = {}
    mark = re.search(r'multipart/form-data;.*boundary="?([^";]+)', request.headers.get("Content-Type", ""))
    for piece in body.split(b"--" + mark[1].encode())[1:-1] if mark else []:
        head, _, content = piece.partition(b"\r\n\r\n")
        part, file = re.search(rb'[; ]name="([^"]*)"', head), re.search(rb'filename="([^"]*)"', head)
        parts[part[1].decode() if part else ""] = (file[1].decode() if file else "", content[:-2])
    for name in ("file", "purpose"):
        if name not in parts:
            raise wire.refused(400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    purpose = parts["purpose"][1].decode()
    if purpose not in PURPOSES:
        raise wire.refused(400, f"'{purpose}' is not one of the supported purposes.", "purpose", "invalid_value")
    if purpose == "batch" and not parts["file"][0].endswith(".jsonl"):
        raise wire.refused(400, "Invalid file format for Batch API. Must be .jsonl", "file")
    return store(shop, parts["file"][1], parts["file"][0], purpose)


def no_file(name: str) -> RefusedError:
    """The answer where no file has this id."""
    return wire.refused(404, f"No such File object: {name}", "id")


def file_facts(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """GET /v1/files/{id}"""
    facts: dict[str, Any] = of(shop.files, name, no_file(name))[0]
    return facts


def file_content(shop: Shop, request: Any, body: bytes, name: str) -> bytes:
    """GET /v1/files/{id}/content"""
    content: bytes = of(shop.files, name, no_file(name))[1]
    return content


def file_list(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """GET /v1/files"""
    newest = [facts for facts, _ in reversed(shop.files.values())]
    return {"object": "list", **page(newest, request.query, "after", 10_000)}


def file_delete(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """DELETE /v1/files/{id}"""
    of(shop.files, name, no_file(name))
    del shop.files[name]
    return {"id": name, "object": "file", "deleted": True}


def read_lines(content: bytes, path: str) -> tuple[list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """(lines, problems) of an input file; OpenAI finds problems after the batch was created."""
    lines: dict[str, dict[str, Any]] = {}
    problems, models = [], set()
    rows = content.splitlines()
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            problems.append(problem("invalid_json_line", "This line is not parseable as valid JSON.", number))
            continue
        missing = [name for name in ("custom_id", "method", "url", "body") if not line.get(name)]
        if missing:
            why = f"Missing required parameter: '{missing[0]}'."
            problems.append(problem("missing_required_parameter", why, number, missing[0]))
            continue
        if line["custom_id"] in lines:
            problems.append(problem("duplicate_custom_id", DUPLICATE, number, "custom_id"))
        if line["method"] != "POST":
            problems.append(problem("invalid_method", "Only POST requests are supported.", number, "method"))
        if line["url"] != path:
            why = "The URL provided for this request does not match the batch endpoint."
            problems.append(problem("url_mismatch", why, number, "url"))
        models.add(line["body"].get("model"))
        if len(models) > 1:
            why = "All requests of a batch must name the same model."
            problems.append(problem("model_mismatch", why, number, "body.model"))
        lines[line["custom_id"]] = line["body"]
    if not rows:
        problems.append(problem("empty_file", "The batch input file is empty.", None))
    if len(rows) > MOST_LINES:
        problems.append(problem("too_many_tasks", "A batch has at most 50,000 requests.", None))
    return list(lines.items()), problems


def create(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """POST /v1/batches"""
    wanted = parsed(body, wire.refused(400, "We could not parse the JSON body of your request."))
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in wanted:
            raise wire.refused(400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    for name in wanted.keys() - {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}:
        raise wire.refused(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    for name, allowed in (("endpoint", wire.ENDPOINTS), ("completion_window", ("24h",))):
        if wanted[name] not in allowed:
            raise wire.refused(400, f"Invalid value: '{wanted[name]}'. Supported values are: "
                                           f"{', '.join(map(repr, allowed))}.", name, "invalid_value")  # fmt: skip
    metadata = wanted.get("metadata") or {}
    if len(metadata) > 16 or any(len(k) > 64 or not isinstance(v, str) or len(v) > 512 for k, v in metadata.items()):
        raise wire.refused(400, "Invalid 'metadata': at most 16 pairs, keys of 64 and strings of 512 characters.",
                                  "metadata", "invalid_value")  # fmt: skip
    facts, content = of(shop.files, wanted["input_file_id"], no_file(wanted["input_file_id"]))
    lines, problems = read_lines(content, wanted["endpoint"])
    if facts["purpose"] != "batch":
        problems = [problem("invalid_file_purpose", "The input file must be uploaded for the purpose batch.", None)]
    if shop.config.batch_failure:
        problems = [problem(shop.config.batch_failure, "This batch cannot be processed.", None)]
    name = f"batch_{next(shop.numbers):012x}"
    batch = Batch(name, wire, wanted["endpoint"], lines, wanted, errors=problems, at_end=write_files)
    shop.batches[batch.id] = batch
    return batch_json(batch, shop.config)


def status_of(batch: Batch, config: Config) -> str:
    """The status in OpenAI's words."""
    if batch.ended and batch.errors:
        return "failed"
    if batch.ended and batch.cancelling:
        return "cancelled"
    if batch.ended:
        return "expired" if batch.counts()["expired"] else "completed"
    if batch.cancelling:
        return "cancelling"
    if batch.looks == 0:
        return "validating"
    return "finalizing" if 2 <= batch.looks == config.batch_polls - 1 else "in_progress"


def batch_json(batch: Batch, config: Config) -> dict[str, Any]:
    """The batch object."""
    status, counts, created = status_of(batch, config), batch.counts(), batch.times["created"]
    stamps = {f"{name}_at": batch.times["ended"] if status == name else None
              for name in ("completed", "failed", "expired", "cancelled")}  # fmt: skip
    started = None if status in ("validating", "failed") else created
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.path,
        "errors": {"object": "list", "data": batch.errors} if status == "failed" else None,
        "input_file_id": batch.facts["input_file_id"],
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.files.get("output"),
        "error_file_id": batch.files.get("error"),
        "created_at": created,
        "in_progress_at": started,
        "expires_at": created + DAY,
        "finalizing_at": created if status in ("finalizing", "completed") else None,
        "cancelling_at": batch.times.get("cancelling"),
        **stamps,
        "request_counts": {"total": 0 if status in ("validating", "failed") else len(batch.lines),
                           "completed": counts["succeeded"], "failed": counts["errored"] + counts["expired"]},
        "metadata": batch.facts.get("metadata"),
    }  # fmt: skip


def found(shop: Shop, name: str) -> Batch:
    """The batch of this id; raises 404 where there is none."""
    batch: Batch = of(shop.batches, name, wire.refused(404, f"No batch found with id '{name}'."))
    return batch


def get(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """GET /v1/batches/{id}"""
    return batch_json(look(shop, found(shop, name)), shop.config)


def listed(shop: Shop, request: Any, body: bytes) -> dict[str, Any]:
    """GET /v1/batches"""
    mine = [batch for batch in reversed(shop.batches.values()) if batch.wire is wire]
    return {"object": "list", **page([batch_json(b, shop.config) for b in mine], request.query, "after", 100)}


def cancel(shop: Shop, request: Any, body: bytes, name: str) -> dict[str, Any]:
    """POST /v1/batches/{id}/cancel"""
    batch = found(shop, name)
    if batch.ended:
        status = status_of(batch, shop.config)
        raise wire.refused(409, f"Cannot cancel a batch with status '{status}'.")
    batch.cancelling = True
    batch.times["cancelling"] = int(time.time())
    return batch_json(batch, shop.config)
